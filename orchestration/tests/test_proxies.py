"""Proxies of the environment: loopback bypasses them, and errors of other addresses name them."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from gpt2.jobs.v1 import jobs_service_pb2, jobs_service_pb2_grpc

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
