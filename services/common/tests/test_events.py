"""Events as another system's Kafka client sees them, published by a real service process to a broker."""

import subprocess
import sys
import time

import pytest
from kafka import KafkaConsumer

from gpt2.events.v1 import events_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_contracts.events import CloudEvent, InvalidEvent

TOPIC = "gpt2.stage-events.v1"


@pytest.fixture
def start_broker(tmp_path):
    """Starts the broker stand-in; returns its address."""
    processes = []

    def start() -> str:
        address_file = tmp_path / "kafka.address"
        command = [sys.executable, "-m", "gpt2_orchestration.stack.kafka_broker", str(address_file), TOPIC]
        processes.append(subprocess.Popen(command))
        deadline = time.monotonic() + 120
        while not address_file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return address_file.read_text()

    yield start
    for process in processes:
        process.kill()
        process.wait()


def consume(address: str, count: int) -> list:
    consumer = KafkaConsumer(
        TOPIC,
        bootstrap_servers=address,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        group_id=None,
        consumer_timeout_ms=20_000,
    )
    records = []
    for record in consumer:
        records.append(record)
        if len(records) == count:
            break
    consumer.close()
    return records


def test_every_change_of_state_is_one_cloud_event_in_order(make_service, start_broker):
    address = start_broker()
    service = make_service(GPT2_KAFKA_BOOTSTRAP_SERVERS=address).start().wait_until_ready()
    service.run("succeed", job_id="run-1/export")
    service.run("fail", job_id="run-2/export")
    service.run("succeed", job_id="run-1/encode")
    records = consume(address, 9)
    assert len(records) == 9
    seen = []
    for record in records:
        headers = dict(record.headers)
        assert headers["ce_specversion"] == b"1.0"
        assert headers["content-type"] == b"application/protobuf"
        assert headers["ce_source"] == b"/gpt2/fake"
        assert headers["ce_partitionkey"] == record.key
        assert headers["ce_type"] == b"gpt2.events.v1.JobStateChanged"
        event = CloudEvent.from_record(record.headers, record.value)
        change = events_pb2.JobStateChanged.FromString(event.data)
        assert (event.subject, event.key) == (change.job.job_id, change.job.run_id)
        seen.append((record.key.decode(), change.job.job_id, change.previous_state, change.job.state, event.id))
    of_run = [entry[1:4] for entry in seen if entry[0] == "run-1"]
    Job = job_pb2.Job  # noqa: N806
    steps = [
        (Job.STATE_UNSPECIFIED, Job.STATE_QUEUED),
        (Job.STATE_QUEUED, Job.STATE_RUNNING),
        (Job.STATE_RUNNING, Job.STATE_SUCCEEDED),
    ]
    assert of_run == [("run-1/export", *step) for step in steps] + [("run-1/encode", *step) for step in steps]
    assert len({entry[4] for entry in seen}) == 9


def test_events_of_a_time_without_a_broker_are_published_when_it_is_there(make_service, start_broker):
    service = make_service(GPT2_KAFKA_BOOTSTRAP_SERVERS="").start().wait_until_ready()
    service.run("succeed", job_id="run-1/export")
    service.kill()
    address = start_broker()
    service.settings["GPT2_KAFKA_BOOTSTRAP_SERVERS"] = address
    service.start().wait_until_ready()
    records = consume(address, 3)
    states = [events_pb2.JobStateChanged.FromString(record.value).job.state for record in records]
    assert states == [job_pb2.Job.STATE_QUEUED, job_pb2.Job.STATE_RUNNING, job_pb2.Job.STATE_SUCCEEDED]


def test_a_record_that_is_no_cloud_event_is_recognized():
    good = [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"1"),
        ("ce_source", b"/x"),
        ("ce_type", b"t"),
        ("ce_time", b"2026-01-01T00:00:00+00:00"),
        ("content-type", b"application/protobuf"),
    ]
    assert CloudEvent.from_record(good, b"x").id == "1"
    for missing in range(len(good)):
        with pytest.raises(InvalidEvent):
            CloudEvent.from_record(good[:missing] + good[missing + 1 :], b"x")
    with pytest.raises(InvalidEvent):
        CloudEvent.from_record(good, None)
    with pytest.raises(InvalidEvent):
        CloudEvent.from_record([("ce_specversion", b"\xff"), *good[1:]], b"x")
