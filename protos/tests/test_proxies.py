"""Proxies of the environment: which addresses bypass them, what errors say of them, and clients that go by them."""

import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
from free_ports import free_port

from gpt2_proxies import (
    channel_options,
    exempt_loopback,
    grpc_proxy_note,
    is_loopback,
    open_url,
    opener_for,
    redacted,
    web_proxy_note,
)

VARIABLES = ("grpc_proxy", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


class _Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(204)
        self.end_headers()


@pytest.fixture
def page() -> Iterator[str]:
    """URL of a page on loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def dead_proxy(monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    for name in VARIABLES:
        monkeypatch.setenv(name, f"http://ann:hidden@127.0.0.1:{free_port()}")


def test_urls_on_loopback_bypass_a_dead_proxy(dead_proxy, page):
    for answer in (opener_for(page).open(page, timeout=10), open_url(page, 10)):
        with answer:
            assert answer.status == 204


def test_other_clients_do_so_once_loopback_is_exempt(dead_proxy, page):
    exempt_loopback()
    # MLflow's client is one of `requests`.
    assert requests.get(page, timeout=10).status_code == 204
    # `urlopen` keeps its first opener, and so the dead proxy, for whatever else runs in this process.
    with urllib.request.build_opener().open(page, timeout=10) as answer:
        assert answer.status == 204


def test_an_error_names_the_proxy_without_its_password(dead_proxy):
    note = web_proxy_note("http://mlflow.example:5000")
    assert "http_proxy routes it through the proxy http://***@127.0.0.1:" in note
    assert "add mlflow.example to no_proxy" in note
    assert "hidden" not in note
    assert web_proxy_note("http://localhost:5000") == ""


def test_errors_respect_no_proxy(dead_proxy, monkeypatch):
    monkeypatch.setenv("no_proxy", ".example")
    assert web_proxy_note("http://mlflow.example:5000") == ""


@pytest.mark.parametrize(
    "target",
    [
        "localhost:1",
        "127.0.0.1:1",
        "127.8.9.1:1",
        "[::1]:1",
        "ipv6:[::1]:1",
        "dns:///localhost:1",
        "unix:/run/x",
        "LOCALHOST:1",
    ],
)
def test_channels_to_loopback_bypass_proxies(target):
    assert channel_options(target) == [("grpc.enable_http_proxy", 0)]
    assert grpc_proxy_note(target, {"grpc_proxy": "http://p:1"}) == ""


def test_other_channels_use_the_proxy():
    assert channel_options("gpu.example:50053") == []
    assert "grpc_proxy" in grpc_proxy_note(
        "gpu.example:50053", {"grpc_proxy": "http://p:1", "http_proxy": "http://q:1"}
    )
    assert grpc_proxy_note("gpu.example:50053", {"grpc_proxy": "http://p:1", "no_proxy": "example"}) == ""
    assert grpc_proxy_note("10.1.2.3:50053", {"grpc_proxy": "http://p:1", "no_proxy": "10.0.0.0/8"}) == ""
    assert grpc_proxy_note("gpu.example:50053", {"all_proxy": "http://p:1"}) == ""
    assert "all_proxy" in web_proxy_note("http://tensorboard.example", {"all_proxy": "http://p:1"})


@pytest.mark.parametrize("host", ["localhost", "127.1.2.3", "::1", "[::1]", "::ffff:127.0.0.1", "a.localhost"])
def test_all_names_of_loopback_are_recognized(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "localhost.example", "10.0.0.1", "127.example", "::2"])
def test_names_that_resemble_loopback_are_not(host):
    assert not is_loopback(host)


def test_loopback_is_added_to_no_proxy():
    environment = {"NO_PROXY": "intern.example"}
    exempt_loopback(environment)
    exempt_loopback(environment)
    entries = environment["no_proxy"].split(",")
    assert (
        entries
        == environment["NO_PROXY"].split(",")
        == ["intern.example", "localhost", "127.0.0.1", "::1", "127.0.0.0/8"]
    )


@pytest.mark.parametrize(
    ("proxy", "shown"),
    [
        ("http://ann:p@ss@host:3128", "http://***@host:3128"),
        ("ann:secret@host:3128", "***@host:3128"),
        ("http://host:3128", "http://host:3128"),
    ],
)
def test_passwords_of_proxies_are_not_shown(proxy, shown):
    assert redacted(proxy) == shown
