"""A service that dies at each named place of its commit paths, with Apache Kafka: nothing is lost, nothing done twice.

The checker reads the event log and asks the service for its jobs, and proves from both: each change of state of each
job is there, in order, as one event however often it was delivered; each stage was started once.
"""

import time

import pytest
from kafka import KafkaConsumer

from gpt2.events.v1 import events_pb2
from gpt2.jobs.v1 import job_pb2, jobs_service_pb2

from .brokers import TOPIC, ApacheKafka, require_java
from .conftest import FakeService, free_port

Job = job_pb2.Job
PLACES = [
    *(f"before-job-commit:{number}" for number in (1, 2, 3, 4, 6)),
    *(f"after-job-commit:{number}" for number in (2, 3, 4, 6)),
    *(f"before-outbox-removal:{number}" for number in (1, 2, 4)),
    *(f"before-offset-commit:{number}" for number in (1, 3, 4)),
]
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


def history(address: str, run_id: str, jobs: list[job_pb2.Job]) -> list[tuple[str, events_pb2.JobStateChanged]]:
    """Ids and content of a run's events, in the order of the log, up to the last change that the store knows of."""
    last = {(job.job_id, job.revision) for job in jobs}
    consumer = KafkaConsumer(TOPIC, bootstrap_servers=address, auto_offset_reset="earliest", enable_auto_commit=False)
    found = []
    deadline = time.monotonic() + 60
    while last:
        assert time.monotonic() < deadline, f"lost: {last}"
        for batch in consumer.poll(timeout_ms=500).values():
            for record in batch:
                if record.key == run_id.encode():
                    change = events_pb2.JobStateChanged.FromString(record.value)
                    found.append((dict(record.headers)["ce_id"].decode(), change))
                    last.discard((change.job.job_id, change.job.revision))
    consumer.close()
    return found


def check_history(events: list[tuple[str, events_pb2.JobStateChanged]], jobs: list[job_pb2.Job]) -> None:
    """Proves the promises."""
    first_deliveries = dict(reversed(events))
    for job in jobs:
        seen = [change for _, change in events if change.job.job_id == job.job_id]
        once = {id_: change for id_, change in first_deliveries.items() if change.job.job_id == job.job_id}
        chain = sorted(once.values(), key=lambda change: change.job.revision)
        states = [Job.STATE_UNSPECIFIED, *(change.job.state for change in chain)]
        assert [change.previous_state for change in chain] == states[:-1], "a change was lost or told twice"
        assert states[-1] == job.state
        revisions = list(dict.fromkeys(change.job.revision for change in seen))
        assert revisions == sorted(revisions), "events of a job came out of order"
        assert chain[0].job.create_time == job.create_time, "the stage was started twice"


@pytest.mark.parametrize("place", PLACES)
def test_nothing_is_lost_or_done_twice_when_a_service_dies(broker, tmp_path, place):
    run_id = place.replace(":", "-")
    service = FakeService(
        tmp_path,
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
    assert not list(tmp_path.glob("artifacts/**/.*.part"))
    service.kill()


def test_a_service_killed_over_and_over_brings_a_run_to_its_end(broker, tmp_path):
    service = FakeService(tmp_path, GPT2_KAFKA_BOOTSTRAP_SERVERS=broker.address).start().wait_until_ready()
    submit(service, "killed")
    for _ in range(6):
        service.kill()
        service.start().wait_until_ready()
    jobs = finish(service, "killed")
    check_history(history(broker.address, "killed", jobs), jobs)
    service.kill()


def test_events_of_an_outage_of_the_broker_are_all_there_and_in_order_after_it(broker, tmp_path):
    service = FakeService(tmp_path, GPT2_KAFKA_BOOTSTRAP_SERVERS=broker.address).start().wait_until_ready()
    submit(service, "before-outage")
    finish(service, "before-outage")
    broker.stop()
    submit(service, "outage")
    service.watch("outage/import-files")
    broker.start()
    jobs = finish(service, "outage")
    check_history(history(broker.address, "outage", jobs), jobs)
    service.kill()
