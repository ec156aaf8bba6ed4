"""Proxies of the environment, as the services' own clients go by them."""

import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
from free_ports import free_port

from gpt2_common.proxies import exempt_loopback, is_loopback, opener_for, proxy_note

VARIABLES = ("grpc_proxy", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


class _Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(204)
        self.end_headers()


@pytest.fixture
def dead_proxy(monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    for name in VARIABLES:
        monkeypatch.setenv(name, f"http://ann:hidden@127.0.0.1:{free_port()}")


def test_downloads_and_mlflow_of_this_machine_pass_by_a_dead_proxy(dead_proxy):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        with opener_for(url).open(url, timeout=10) as answer:
            assert answer.status == 204
        exempt_loopback()
        # MLflow's client is one of `requests`.
        assert requests.get(url, timeout=10).status_code == 204
        # `urlopen` keeps its first opener, and so the dead proxy, for whatever else runs in this process.
        with urllib.request.build_opener().open(url, timeout=10) as answer:
            assert answer.status == 204
        server.shutdown()


def test_an_error_names_the_proxy_without_its_password(dead_proxy):
    note = proxy_note("http://mlflow.example:5000")
    assert "http_proxy sends it through the proxy http://***@127.0.0.1:" in note
    assert "add mlflow.example to no_proxy" in note
    assert "hidden" not in note
    assert proxy_note("http://localhost:5000") == ""


def test_no_proxy_is_gone_by_in_errors(dead_proxy, monkeypatch):
    monkeypatch.setenv("no_proxy", ".example")
    assert proxy_note("http://mlflow.example:5000") == ""


@pytest.mark.parametrize("host", ["localhost", "127.1.2.3", "::1", "::ffff:127.0.0.1"])
def test_loopback_is_known_by_all_its_names(host):
    assert is_loopback(host)
