"""The check of containers gives what gRPC's own client would, without importing it."""

import http.server
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import gpt2_common.healthcheck

pytestmark = pytest.mark.process

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def check(*arguments, **environment):
    """Runs the file as containers do. Returns its exit status."""
    command = [sys.executable, "-I", "-S", Path(gpt2_common.healthcheck.__file__), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert not done.stderr
    return done.returncode


@pytest.fixture
def health_server():
    """A gRPC server, the state that it reports, and its port."""
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    yield servicer, port
    server.stop(0)


def test_a_server_is_healthy_only_while_it_serves(health_server):
    servicer, port = health_server
    servicer.set("", SERVING)
    assert check(GPT2_LISTEN=f"0.0.0.0:{port}") == 0
    assert check(f"localhost:{port}") == 0
    servicer.set("", NOT_SERVING)
    assert check(GPT2_LISTEN=f"0.0.0.0:{port}") == 1


def test_a_server_that_knows_no_such_call_is_not_healthy():
    server = grpc.server(ThreadPoolExecutor(2))
    port = server.add_insecure_port("localhost:0")
    server.start()
    assert check(f"localhost:{port}") == 1
    server.stop(0)


def test_what_is_closed_mute_or_speaks_otherwise_is_not_healthy():
    with socket.create_server(("localhost", 0)) as mute:
        port = mute.getsockname()[1]
        assert check(f"localhost:{port}") == 1
    assert check(f"localhost:{port}") == 1


@pytest.mark.parametrize(("path", "expected"), [("/health", 0), ("/missing", 1)])
def test_a_page_is_healthy_when_it_answers_200(path, expected):
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("localhost", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://localhost:{server.server_address[1]}"
        assert check(f"{address}{path}") == expected
        assert check(f"{address}") == 1
        server.shutdown()
