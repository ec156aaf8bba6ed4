"""Following a job whose service is idle, unresponsive or unavailable."""

import asyncio
import time
from concurrent import futures

import grpc
import pytest

from gpt2.jobs.v1 import job_pb2, jobs_service_pb2, jobs_service_pb2_grpc
from gpt2_orchestration.client import service_client as client_module
from gpt2_orchestration.client.service_client import ClientSettings, ServiceError, connect, watch_to_end

Job = job_pb2.Job


class QuietService(jobs_service_pb2_grpc.JobsServiceServicer):
    """Its streams are idle; the third GetJob returns a succeeded job."""

    def __init__(self, unresponsive: bool) -> None:
        self.unresponsive = unresponsive
        self.streams: list[int] = []
        self.asked = 0

    def WatchJob(self, request, context):
        self.streams.append(request.after_revision)
        while context.is_active():
            time.sleep(0.01)
        yield from ()

    def GetJob(self, request, context):
        self.asked += 1
        while self.unresponsive and context.is_active():
            time.sleep(0.01)
        state = Job.STATE_SUCCEEDED if self.asked == 3 else Job.STATE_RUNNING
        return jobs_service_pb2.GetJobResponse(job=Job(job_id="a", state=state, revision=self.asked))


@pytest.fixture
def serve(monkeypatch):
    """Serves a quiet service. Returns it, and the settings of a client with short deadlines."""
    monkeypatch.setattr(client_module, "_WATCH_SECONDS", 0.2)
    monkeypatch.setattr(client_module, "CALL_SECONDS", 2.0)
    server = grpc.server(futures.ThreadPoolExecutor(8))

    def start(unresponsive: bool) -> tuple[QuietService, ClientSettings]:
        service = QuietService(unresponsive)
        jobs_service_pb2_grpc.add_JobsServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return service, ClientSettings(addresses={"trainer": f"127.0.0.1:{port}"})

    yield start
    server.stop(None).wait()


def test_an_idle_stream_is_renewed_from_its_revision_until_the_job_has_ended(serve):
    service, settings = serve(unresponsive=False)
    with connect("trainer", settings) as client:
        assert client.follow(Job(job_id="a", state=Job.STATE_RUNNING), lambda _: None).state == Job.STATE_SUCCEEDED
    assert service.streams == [0, 1, 2]


def test_an_unresponsive_service_is_an_error(serve, monkeypatch):
    monkeypatch.setattr(client_module, "CALL_SECONDS", 0.2)
    monkeypatch.setattr(client_module, "_LOST_SECONDS", 0.5)
    _, settings = serve(unresponsive=True)
    with connect("trainer", settings) as client, pytest.raises(ServiceError, match="does not answer"):
        client.follow(Job(job_id="a", state=Job.STATE_RUNNING), lambda _: None)


def test_idle_streams_are_renewed_with_asyncio_too(serve):
    _, settings = serve(unresponsive=False)
    assert asyncio.run(watch_to_end("trainer", settings, "a")).state == Job.STATE_SUCCEEDED
