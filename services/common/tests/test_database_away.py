"""The database goes away while a service runs: calls say so, no job's end is lost, and no job is done twice."""

import json
import time

import grpc
import pytest

from gpt2.jobs.v1 import job_pb2

from .conftest import FakeService
from .postgresql import PostgreSql

pytestmark = pytest.mark.process

Job = job_pb2.Job


@pytest.fixture
def database():
    server = PostgreSql().start()
    yield server
    server.remove()


@pytest.fixture
def service(database, make_service) -> FakeService:
    return make_service(GPT2_DATABASE_URL=database.url).start().wait_until_ready()


def end_without_database(service: FakeService, database: PostgreSql, tmp_path) -> str:
    """A job whose process ends well while the database is away. Returns its id."""
    job = service.submit("finish_when", str(tmp_path / "go"))
    service.wait_for_state(job.job_id, Job.STATE_RUNNING)
    database.stop()
    (tmp_path / "go").touch()
    deadline = time.monotonic() + 120
    while "the outcome of job" not in service.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return job.job_id


def test_a_job_that_ends_while_the_database_is_unavailable_succeeds_when_it_is_back(service, database, tmp_path):
    job_id = end_without_database(service, database, tmp_path)
    calls = (lambda: service.get(job_id), lambda: service.submit("succeed"), lambda: service.cancel(job_id))
    for call in calls:
        with pytest.raises(grpc.RpcError) as error:
            call()
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE
        assert "database" in error.value.details()
    database.start()
    ended = service.watch(job_id)[-1]
    assert (ended.state, ended.attempt) == (Job.STATE_SUCCEEDED, 1)
    assert service.run("succeed").state == Job.STATE_SUCCEEDED


def test_a_service_that_stops_before_an_outcome_is_stored_resumes_the_job(service, database, tmp_path):
    job_id = end_without_database(service, database, tmp_path)
    assert service.stop() == 0
    database.start()
    service.start().wait_until_ready()
    ended = service.watch(job_id)[-1]
    assert (ended.state, ended.attempt) == (Job.STATE_SUCCEEDED, 2)
    [output] = ended.outputs
    manifest = tmp_path / "artifacts" / job_id / "corpus" / "manifest.json"
    assert json.loads(manifest.read_text())["producer"]["job_id"] == job_id
    assert output.uri == manifest.parent.as_uri()
