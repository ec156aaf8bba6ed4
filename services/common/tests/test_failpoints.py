"""A service that dies at each named place of its commit paths, with Apache Kafka: nothing is lost, nothing done twice.

`history.py` has the checker.
"""

import time

import pytest
from free_ports import free_port

from gpt2.jobs.v1 import job_pb2, jobs_service_pb2

from .brokers import ApacheKafka, require_java
from .conftest import FakeService
from .history import check_history, history, stray_files

pytestmark = pytest.mark.process

Job = job_pb2.Job
PLACES = {
    "before-job-commit": (3, 1, 2, 4, 6),
    "after-job-commit": (4, 2, 3, 6),
    "before-outbox-removal": (2, 1, 4),
    "before-offset-commit": (4, 1, 3),
}
"""Each named place, and at which of its passages the service dies; the first one represents the others."""
STAGES = ("import-files", "second", "third")


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    require_java()
    kafka = ApacheKafka(tmp_path_factory.mktemp("kafka"), free_port())
    yield kafka.start()
    kafka.stop()


def submit(service: FakeService, run_id: str) -> None:
    """Starts a run of three stages, however often the service dies of it."""
    plan = job_pb2.RunPlan()
    for name in STAGES[1:]:
        plan.stages.add(start="ImportFiles", name=name).request.update({"uris": ["succeed", name]})
    while True:
        try:
            service.submit("succeed", run_id=run_id, plan=plan)
            return
        except Exception:  # noqa: BLE001 - it died in the middle; the same call again is safe
            assert service.process.wait(30) != 0
            service.start().wait_until_ready()


def finish(service: FakeService, run_id: str) -> list[job_pb2.Job]:
    """Waits for the end of a run, and starts the service again when it has died."""
    deadline = time.monotonic() + 90
    while True:
        assert time.monotonic() < deadline, service.log.read_text()[-3000:]
        if service.process.poll() is not None:
            service.start().wait_until_ready()
        try:
            request = jobs_service_pb2.ListJobsRequest(run_id=run_id)
            jobs = list(service.jobs.ListJobs(request, timeout=10).jobs)
        except Exception:  # noqa: BLE001 - it dies just now
            continue
        if len(jobs) == len(STAGES) and jobs[0].state == Job.STATE_SUCCEEDED:
            return jobs
        time.sleep(0.05)


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(f"{name}:{number}", marks=() if number == numbers[0] else pytest.mark.exhaustive)
        for name, numbers in PLACES.items()
        for number in numbers
    ],
)
def test_nothing_is_lost_or_done_twice_when_a_service_dies(broker, make_service, tmp_path, place):
    run_id = place.replace(":", "-")
    service = make_service(
        GPT2_KAFKA_BOOTSTRAP_SERVERS=broker.address,
        GPT2_FAILPOINT=place,
        GPT2_FAILPOINT_FILE=str(tmp_path / "died"),
    )
    service.start().wait_until_ready()
    submit(service, run_id)
    jobs = finish(service, run_id)
    check_history(history(broker.address, run_id, jobs), jobs)
    assert {job.job_id for job in jobs} == {f"{run_id}/{stage}" for stage in STAGES}
    assert (tmp_path / "died").exists(), "the place was never reached"
    assert not stray_files(tmp_path / "artifacts")


@pytest.mark.parametrize("place", ["before-artifact-rename", "after-artifact-rename"])
def test_a_job_that_dies_at_its_artifacts_rename_is_continued_to_one_whole_artifact(
    broker, make_service, tmp_path, place
):
    service = make_service(
        GPT2_KAFKA_BOOTSTRAP_SERVERS=broker.address,
        GPT2_FAILPOINT=place,
        GPT2_FAILPOINT_FILE=str(tmp_path / "died"),
    )
    service.start().wait_until_ready()
    submit(service, place)
    # It is the job's process that dies here, not the service.
    service.wait_for_state(f"{place}/import-files", Job.STATE_FAILED)
    manifest = tmp_path / "artifacts" / f"{place}~import-files" / "corpus" / "manifest.json"
    assert manifest.exists() == (place == "after-artifact-rename")
    service.jobs.ContinueRun(jobs_service_pb2.ContinueRunRequest(run_id=place), timeout=10)
    jobs = finish(service, place)
    check_history(history(broker.address, place, jobs), jobs)
    assert manifest.exists()
    assert not stray_files(tmp_path / "artifacts")


@pytest.mark.exhaustive
def test_a_service_killed_over_and_over_brings_a_run_to_its_end(broker, make_service):
    service = make_service(GPT2_KAFKA_BOOTSTRAP_SERVERS=broker.address).start().wait_until_ready()
    submit(service, "killed")
    for _ in range(6):
        service.kill()
        service.start().wait_until_ready()
    jobs = finish(service, "killed")
    check_history(history(broker.address, "killed", jobs), jobs)


def test_events_of_an_outage_of_the_broker_are_all_there_and_in_order_after_it(broker, make_service):
    service = make_service(GPT2_KAFKA_BOOTSTRAP_SERVERS=broker.address).start().wait_until_ready()
    submit(service, "before-outage")
    finish(service, "before-outage")
    broker.stop()
    submit(service, "outage")
    service.watch("outage/import-files")
    # Until the producer gives up what was under way.
    deadline = time.monotonic() + 90
    while "events wait in the outbox" not in service.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    broker.start()
    jobs = finish(service, "outage")
    check_history(history(broker.address, "outage", jobs), jobs)
