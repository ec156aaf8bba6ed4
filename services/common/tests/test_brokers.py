"""What publishing, consuming and planned runs promise: one suite, against the embedded broker and Apache Kafka."""

import random
import time

import pytest
from free_ports import free_port
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer

from gpt2.events.v1 import events_pb2
from gpt2.jobs.v1 import job_pb2, jobs_service_pb2
from gpt2_common.jobs.rows import job_event

from .brokers import TOPIC, ApacheKafka, EmbeddedBroker, require_java
from .conftest import FakeService

pytestmark = pytest.mark.process

Job = job_pb2.Job
QUEUE_LIMIT = 20


# Every stack of the tests has the embedded one, and test_event_bus.py holds it to what Kafka does.
@pytest.fixture(scope="module", params=[pytest.param("embedded", marks=pytest.mark.exhaustive), "apache"])
def broker(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("broker")
    if request.param == "apache":
        require_java()
    made = EmbeddedBroker(folder) if request.param == "embedded" else ApacheKafka(folder, free_port())
    yield made.start()
    made.stop()


@pytest.fixture(scope="module")
def service(broker, tmp_path_factory):
    settings = {"GPT2_KAFKA_BOOTSTRAP_SERVERS": broker.address, "GPT2_QUEUE_LIMIT": str(QUEUE_LIMIT)}
    made = FakeService(tmp_path_factory.mktemp("service"), **settings).start().wait_until_ready()
    yield made
    made.kill()


def plan(*stages: dict) -> job_pb2.RunPlan:
    planned = job_pb2.RunPlan()
    for stage in stages:
        added = planned.stages.add(start="ImportFiles", name=stage.get("name", ""))
        added.request.update(stage["request"])
    return planned


def wait_for_job(service: FakeService, job_id: str, *states: int) -> job_pb2.Job:
    deadline = time.monotonic() + 60
    while True:
        jobs = service.jobs.ListJobs(jobs_service_pb2.ListJobsRequest(run_id=job_id.partition("/")[0]), timeout=10).jobs
        found = [job for job in jobs if job.job_id == job_id]
        if found and found[0].state in (states or (Job.STATE_SUCCEEDED,)):
            return found[0]
        assert time.monotonic() < deadline, f"{job_id} is {found}"
        time.sleep(0.05)


def records_until(address: str, topic: str, enough) -> list:
    """The records of a topic up to where they are enough."""
    consumer = KafkaConsumer(
        topic, bootstrap_servers=address, auto_offset_reset="earliest", enable_auto_commit=False, group_id=None
    )
    records = []
    deadline = time.monotonic() + 60
    while not enough(records):
        assert time.monotonic() < deadline, f"{len(records)} records"
        for batch in consumer.poll(timeout_ms=500).values():
            records += batch
    consumer.close()
    return records


def of_run(records, run_id: str) -> list[tuple[str, str]]:
    changes = [
        events_pb2.JobStateChanged.FromString(record.value).job for record in records if record.key == run_id.encode()
    ]
    return [(job.job_id.partition("/")[2], Job.State.Name(job.state).removeprefix("STATE_")) for job in changes]


STEPS = ("QUEUED", "RUNNING", "SUCCEEDED")


def test_one_call_runs_a_plan_to_its_end_by_events_alone(service, broker):
    stages = [{"name": name, "request": {"uris": ["succeed", name]}} for name in ("second", "third")]
    first = service.submit("succeed", run_id="plan-1", plan=plan(*stages))
    assert first.job_id == "plan-1/import-files"
    # Lists leave out what earlier stages have made.
    last = service.get(wait_for_job(service, "plan-1/third").job_id)
    # Of each name there is the latest.
    [artifact] = last.plan.artifacts
    assert artifact.uri.endswith("plan-1~second/corpus")
    assert not last.plan.stages
    records = records_until(broker.address, TOPIC, lambda found: len(of_run(found, "plan-1")) == 9)
    assert of_run(records, "plan-1") == [(name, step) for name in ("import-files", "second", "third") for step in STEPS]


def test_a_failed_stage_stops_the_run_which_can_be_continued(service, tmp_path):
    flag = tmp_path / "flag"
    stages = [
        {"name": "second", "request": {"uris": ["fail_unless", str(flag)]}},
        {"name": "third", "request": {"uris": ["succeed"]}},
    ]
    service.submit("succeed", run_id="plan-2", plan=plan(*stages))
    wait_for_job(service, "plan-2/second", Job.STATE_FAILED)
    flag.touch()
    answer = service.jobs.ContinueRun(jobs_service_pb2.ContinueRunRequest(run_id="plan-2"), timeout=10)
    assert [job.job_id for job in answer.jobs] == ["plan-2/second"]
    wait_for_job(service, "plan-2/third")


def test_a_wrong_field_in_a_later_stage_is_found_when_the_plan_is_accepted(service):
    stages = [
        {"name": "second", "request": {"uriss": ["succeed"]}},
        {"name": "third", "request": {"uris": ["succeed"]}},
    ]
    with pytest.raises(Exception, match="INVALID_ARGUMENT") as error:
        service.submit("succeed", run_id="plan-3", plan=plan(*stages))
    assert "job.plan.stages[0].request.uriss: unknown field; did you mean uris?" in error.value.details()
    assert not service.jobs.ListJobs(jobs_service_pb2.ListJobsRequest(run_id="plan-3"), timeout=10).jobs


def test_a_cancelled_run_starts_no_further_stage_until_it_is_continued(service, tmp_path):
    flag = tmp_path / "go"
    service.submit(
        "finish_when", str(flag), run_id="plan-4", plan=plan({"name": "b", "request": {"uris": ["succeed"]}})
    )
    service.wait_for_state("plan-4/import-files", Job.STATE_RUNNING)
    service.jobs.CancelRun(jobs_service_pb2.CancelRunRequest(run_id="plan-4", reason="enough"), timeout=10)
    assert "enough" in wait_for_job(service, "plan-4/import-files", Job.STATE_CANCELLED).error.message
    flag.touch()
    service.jobs.ContinueRun(jobs_service_pb2.ContinueRunRequest(run_id="plan-4"), timeout=10)
    wait_for_job(service, "plan-4/b")


def test_poison_goes_to_the_dead_letters_as_it_came_and_does_not_stop_what_is_behind_it(service, broker):
    producer = KafkaProducer(bootstrap_servers=broker.address)
    for partition in range(6):
        producer.send(TOPIC, key=b"poison", value=b"\xff", headers=[("who", b"me")], partition=partition)
    producer.flush()
    producer.close()
    service.submit("succeed", run_id="plan-5", plan=plan({"name": "b", "request": {"uris": ["succeed"]}}))
    wait_for_job(service, "plan-5/b")
    letters = records_until(broker.address, f"{TOPIC}.dlq", lambda found: len(found) >= 6)
    assert {(letter.key, letter.value) for letter in letters} == {(b"poison", b"\xff")}
    headers = dict(letters[0].headers)
    assert headers["who"] == b"me"
    assert headers["dlq_reason"].startswith(b"InvalidEvent")
    assert b"Traceback" in headers["dlq_stack"]
    assert headers["dlq_consumer"] == b"gpt2.fake"


def test_each_event_delivered_one_to_five_times_and_shuffled_has_its_effect_once(service, broker):
    for number in range(3):
        planned = plan({"name": "b", "request": {"uris": ["succeed"]}})
        service.submit("succeed", run_id=f"twice-{number}", plan=planned)
        wait_for_job(service, f"twice-{number}/b")
    keys = {f"twice-{number}".encode() for number in range(3)}
    records = records_until(broker.address, TOPIC, lambda found: sum(record.key in keys for record in found) == 18)
    mine = [record for record in records if record.key in keys]
    producer = KafkaProducer(bootstrap_servers=broker.address)
    dice = random.Random(5)
    again = [record for record in mine for _ in range(dice.randint(0, 4))]
    dice.shuffle(again)
    for record in again:
        producer.send(TOPIC, key=record.key, value=record.value, headers=record.headers)
    producer.flush()
    producer.close()
    # What comes after them in each partition is handled after them.
    for number in range(12):
        planned = plan({"name": "b", "request": {"uris": ["succeed"]}})
        service.submit("succeed", run_id=f"after-{number}", plan=planned)
    for number in range(12):
        wait_for_job(service, f"after-{number}/b")
    for number in range(3):
        jobs = service.jobs.ListJobs(jobs_service_pb2.ListJobsRequest(run_id=f"twice-{number}"), timeout=10).jobs
        assert [(job.job_id, job.attempt) for job in jobs] == [
            (f"twice-{number}/b", 1),
            (f"twice-{number}/import-files", 1),
        ]


def members(address: str) -> list[str]:
    """Ids of the members of the consumer's group; one that has left and come back has another."""
    client = KafkaAdminClient(bootstrap_servers=address)
    found = client.describe_consumer_groups(["gpt2.fake"])
    client.close()
    [group] = found.values() if isinstance(found, dict) else found
    listed = group["members"] if isinstance(group, dict) else group.members
    return [member["member_id"] if isinstance(member, dict) else member.member_id for member in listed]


@pytest.mark.process
def test_a_job_longer_than_the_poll_interval_keeps_its_consumer_and_runs_once(tmp_path, tmp_path_factory):
    require_java()
    kafka = ApacheKafka(tmp_path_factory.mktemp("kafka"), free_port()).start()
    settings = {"GPT2_KAFKA_BOOTSTRAP_SERVERS": kafka.address, "GPT2_KAFKA_MAX_POLL_SECONDS": "2"}
    service = FakeService(tmp_path, **settings).start().wait_until_ready()
    try:
        blocking = plan({"name": "b", "request": {"uris": ["finish_when", str(tmp_path / "go")]}})
        service.submit("succeed", run_id="long", plan=blocking)
        wait_for_job(service, "long/b", Job.STATE_RUNNING)
        before = members(kafka.address)
        others = 0
        began = time.monotonic()
        while time.monotonic() < began + 8:
            service.submit("succeed", run_id=f"o-{others}", plan=plan({"name": "b", "request": {"uris": ["succeed"]}}))
            wait_for_job(service, f"o-{others}/b")
            others += 1
        assert len(before) == 1
        assert members(kafka.address) == before
        (tmp_path / "go").touch()
        assert wait_for_job(service, "long/b").attempt == 1
    finally:
        service.kill()
        kafka.stop()


def test_a_full_queue_makes_an_event_wait_and_no_dead_letter(service, broker, tmp_path):
    """Redelivered later, it starts its stage."""
    blocking = [service.submit("finish_when", str(tmp_path / "go")) for _ in range(2)]
    for job in blocking:
        service.wait_for_state(job.job_id, Job.STATE_RUNNING)
    waiting = [service.submit("succeed") for _ in range(QUEUE_LIMIT)]
    succeeded = job_pb2.Job(
        job_id="full/a",
        run_id="full",
        state=Job.STATE_SUCCEEDED,
        plan=plan({"name": "b", "request": {"uris": ["succeed"]}}),
    )
    event = job_event("fake", succeeded, events_pb2.JobStateChanged(job=succeeded))
    producer = KafkaProducer(bootstrap_servers=broker.address)
    producer.send(TOPIC, key=b"full", value=event.data, headers=event.headers()).get(timeout=30)
    producer.close()
    deadline = time.monotonic() + 60
    while "redelivered" not in service.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for job in waiting:
        service.cancel(job.job_id)
    wait_for_job(service, "full/b", Job.STATE_QUEUED)
    (tmp_path / "go").touch()
    wait_for_job(service, "full/b")
    assert "full" not in "".join(
        line for line in service.log.read_text().splitlines() if "becomes a dead letter" in line
    )


@pytest.mark.parametrize(
    ("stages", "field"),
    [
        ([{"start": "TrainModle"}], "job.plan.stages[0].start"),
        ([{"start": "TrainModel", "name": "a/b"}], "job.plan.stages[0].name"),
        ([{"start": "TrainModel", "name": "x"}, {"start": "TrainModel", "name": "x"}], "job.plan.stages[1].name"),
        ([{"start": "ImportFiles"}], "job.plan.stages[0].name"),
        ([{"start": "TrainModel", "name": str(n)} for n in range(33)], "job.plan.stages"),
    ],
)
def test_a_plan_that_cannot_be_followed_is_refused_by_the_first_call(service, stages, field):
    planned = job_pb2.RunPlan(stages=[job_pb2.PlannedStage(**stage) for stage in stages])
    with pytest.raises(Exception, match="INVALID_ARGUMENT") as error:
        service.submit("succeed", run_id="refused", plan=planned)
    assert field in error.value.details()


def test_a_caller_that_names_an_event_as_its_cause_is_refused(service):
    planned = plan({"name": "b", "request": {"uris": ["succeed"]}})
    planned.cause.id = "1"
    with pytest.raises(Exception, match="INVALID_ARGUMENT") as error:
        service.submit("succeed", run_id="caused", plan=planned)
    assert "job.plan.cause" in error.value.details()
    assert not service.jobs.ListJobs(jobs_service_pb2.ListJobsRequest(run_id="caused"), timeout=10).jobs
