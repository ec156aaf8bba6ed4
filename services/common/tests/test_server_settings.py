"""Settings, as an operator meets them: help, errors at start, tokens, metrics, a broker that is away."""

import contextlib
import errno
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
from free_ports import free_port
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gpt2.jobs.v1 import job_pb2
from gpt2_common.status import code_of, status_of

pytestmark = pytest.mark.process

EXIT_SETTINGS = 78


def fails_to_start(service) -> str:
    service.start()
    assert service.process.wait(30) == EXIT_SETTINGS
    return service.log.read_text()


@pytest.mark.process
def test_help_lists_every_variable():
    result = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("fake_service.py")), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    for variable in ("GPT2_LISTEN", "GPT2_ARTIFACT_ROOT", "GPT2_DATABASE_URL", "GPT2_AUTH_TOKEN"):
        assert variable in result.stdout


def test_a_port_in_use_is_named(make_service):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        log = fails_to_start(make_service(GPT2_LISTEN=address))
    assert f"GPT2_LISTEN: {address} cannot be used: another process has the port" in log
    assert "Traceback" not in log


def test_two_services_cannot_share_a_port(shared_service, make_service):
    log = fails_to_start(make_service(GPT2_LISTEN=f"127.0.0.1:{shared_service.port}"))
    assert "GPT2_LISTEN" in log


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GPT2_LOG_LEVEL", "LOUD"),
        ("GPT2_MAX_ATTEMPTS", "0"),
        ("GPT2_CANCEL_GRACE_SECONDS", "soon"),
        ("GPT2_TLS_KEY_FILE", "/nowhere/key.pem"),
        ("GPT2_DATABASE_URL", "sqlite:////nowhere/jobs.db"),
        ("GPT2_METRICS_LISTEN", "127.0.0.1:none"),
        ("GPT2_CLIENT_TOKEN", "canary\n"),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_starts(make_service, variable, value):
    log = fails_to_start(make_service(**{variable: value}))
    assert variable in log
    assert "Traceback" not in log
    assert "canary" not in log


def test_calls_without_the_token_are_refused_and_probes_are_not(make_service):
    service = make_service(GPT2_AUTH_TOKEN="canary-token").start().wait_until_ready()
    for metadata in ([], [("authorization", "Bearer wrong")], [("authorization", "canary-token")]):
        service.metadata = metadata
        with pytest.raises(grpc.RpcError) as error:
            service.submit("succeed")
        assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.RpcError) as error:
            service.watch("x")
        assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
    reflection = reflection_pb2_grpc.ServerReflectionStub(service.channel)
    with pytest.raises(grpc.RpcError) as error:
        list(reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")])))
    assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
    service.metadata = [("authorization", "Bearer canary-token")]
    done = service.run("succeed")
    assert (done.state, done.actor) == (job_pb2.Job.STATE_SUCCEEDED, "shared token")
    assert "canary-token" not in service.log.read_text()


def test_a_service_whose_artifacts_cannot_be_written_is_not_ready_and_lives(make_service, tmp_path):
    root = tmp_path / "volume"
    root.write_text("no folder")
    service = make_service(GPT2_ARTIFACT_ROOT=str(root)).start()
    stub = health_pb2_grpc.HealthStub(service.channel)

    def status(name):
        with contextlib.suppress(grpc.RpcError):  # it has not looked yet
            return stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=60, wait_for_ready=True).status

    def wait_for(expected):
        deadline = time.monotonic() + 60
        while status("") != expected:
            assert time.monotonic() < deadline
            time.sleep(0.1)

    wait_for(health_pb2.HealthCheckResponse.NOT_SERVING)
    assert status("liveness") == health_pb2.HealthCheckResponse.SERVING
    assert status("gpt2.jobs.v1.JobsService") == health_pb2.HealthCheckResponse.NOT_SERVING
    assert "make it writable for the service's user" in service.log.read_text()
    root.unlink()
    wait_for(health_pb2.HealthCheckResponse.SERVING)
    assert service.run("succeed").state == job_pb2.Job.STATE_SUCCEEDED
    assert "artifacts can be written again" in service.log.read_text()


def test_a_file_that_may_not_be_written_is_an_error_with_advice():
    for number in (errno.EACCES, errno.EROFS):
        status = status_of(OSError(number, os.strerror(number), "/data/artifacts/run"))
        assert code_of(status) == grpc.StatusCode.FAILED_PRECONDITION
        assert status.message.startswith(f"/data/artifacts/run: {os.strerror(number)}; make it writable")
        assert "fsGroup" in status.message


def test_a_secret_can_come_from_a_file(make_service, tmp_path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "gpt2_auth_token").write_text("from-a-file\n")
    service = make_service(GPT2_SECRETS_DIR=str(tmp_path / "secrets")).start().wait_until_ready()
    with pytest.raises(grpc.RpcError):
        service.submit("succeed")
    service.metadata = [("authorization", "Bearer from-a-file")]
    assert service.submit("succeed").state == job_pb2.Job.STATE_QUEUED


def test_the_services_can_be_listed(shared_service):
    reflection = reflection_pb2_grpc.ServerReflectionStub(shared_service.channel)
    [answer] = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {entry.name for entry in answer.list_services_response.service}
    assert {"gpt2.exporter.v1.ExporterService", "gpt2.jobs.v1.JobsService", "grpc.health.v1.Health"} <= names


def test_metrics_count_calls_and_events_that_wait(make_service):
    port = free_port()
    service = make_service(GPT2_METRICS_LISTEN=f"127.0.0.1:{port}").start().wait_until_ready()
    service.run("succeed")
    with pytest.raises(grpc.RpcError):
        service.submit()
    method = 'method="/gpt2.exporter.v1.ExporterService/ImportFiles"'
    expected = {
        f'gpt2_calls_total{{code="OK",{method}}} 1.0',
        f'gpt2_calls_total{{code="INVALID_ARGUMENT",{method}}} 1.0',
        "gpt2_outbox_events 3.0",
        "gpt2_waiting_runs 0.0",
        "gpt2_waiting_runs_oldest_seconds 0.0",
        "gpt2_consumer_unhealthy_seconds 0.0",
    }
    # A call is counted once it is answered, which can be after the caller has the answer.
    deadline = time.monotonic() + 120
    page = ""
    while not expected.issubset(page.splitlines()):
        assert time.monotonic() < deadline, f"{page}\n{service.log.read_text()}"
        with contextlib.suppress(urllib.error.URLError):
            page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()


def test_a_broker_that_is_away_stops_nothing_and_is_named(make_service):
    service = make_service(GPT2_KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:{free_port()}").start().wait_until_ready()
    assert service.run("succeed").state == job_pb2.Job.STATE_SUCCEEDED
    deadline = time.monotonic() + 120
    while "GPT2_KAFKA_BOOTSTRAP_SERVERS" not in service.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
        time.sleep(0.1)
    # Long enough for many attempts: each would be several lines of the client's.
    time.sleep(8)
    assert service.log.read_text().count("events wait in the outbox") == 1
    lines = [line for line in service.log.read_text().splitlines() if "kafka" in line.lower()]
    assert len(lines) <= 3, lines
