"""Proxies of the environment: loopback bypasses them, and errors of other addresses name them."""

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest

from gpt2.jobs.v1 import jobs_service_pb2, jobs_service_pb2_grpc
from gpt2_orchestration.client.proxies import (
    channel_options,
    exempt_loopback,
    grpc_proxy_note,
    is_loopback,
    open_url,
    redacted,
    web_proxy_note,
)

GPT2 = Path(sys.executable).with_name("gpt2")
VARIABLES = ("grpc_proxy", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
ELSEWHERE = "192.0.2.7:50051"  # of a range that no machine has (RFC 5737)


class _Jobs(jobs_service_pb2_grpc.JobsServiceServicer):
    def ListJobs(self, request, context):
        return jobs_service_pb2.ListJobsResponse()

    def DescribeService(self, request, context):
        return jobs_service_pb2.DescribeServiceResponse(service="exporter", version="0")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(4))
    jobs_service_pb2_grpc.add_JobsServiceServicer_to_server(_Jobs(), server)
    chosen = server.add_insecure_port("localhost:0")
    server.start()
    yield chosen
    server.stop(None)


@pytest.fixture(scope="module")
def dead_proxy() -> Iterator[str]:
    """URL, with a password, of a proxy that refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://ann:hidden@127.0.0.1:{taken.getsockname()[1]}"


def gpt2(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [GPT2, *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_commands_bypass_proxies_for_services_on_loopback(tmp_path, port, dead_proxy, host):
    names = ("EXPORTER", "TOKENIZER", "TRAINER", "REGISTRY")
    addresses = {f"GPT2_{name}_ADDRESS": f"{host}:{port}" for name in names}
    result = gpt2("jobs", "list", "--json", folder=tmp_path, **addresses, **dict.fromkeys(VARIABLES, dead_proxy))
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []


def test_errors_of_other_addresses_name_the_proxy(tmp_path, dead_proxy):
    names = ("EXPORTER", "TOKENIZER", "TRAINER", "REGISTRY")
    addresses = {f"GPT2_{name}_ADDRESS": ELSEWHERE for name in names}
    result = gpt2("doctor", "--json", folder=tmp_path, **addresses, http_proxy=dead_proxy)
    assert result.returncode == 1
    findings = {item["what"]: item for item in json.loads(result.stdout)}
    assert "http_proxy routes it through the proxy http://***@127.0.0.1:" in findings["exporter"]["fix"]
    assert "add 192.0.2.7 to no_proxy" in findings["exporter"]["fix"]
    assert "http_proxy=http://***@127.0.0.1:" in findings["proxy"]["found"]
    assert "hidden" not in result.stdout + result.stderr


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


def test_urls_on_loopback_bypass_proxies(monkeypatch, dead_proxy):
    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(204)
            self.end_headers()

    for name in VARIABLES:
        monkeypatch.setenv(name, dead_proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with open_url(f"http://127.0.0.1:{server.server_port}/", 10) as answer:
            assert answer.status == 204
        server.shutdown()


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
