"""The Kafka stand-in answers a fetch that waits as a broker does: as soon as there is something to say."""

import subprocess
import sys
import time

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import OffsetOutOfRangeError

pytestmark = pytest.mark.process

# A fetch that is not woken outlasts the test's patience, whatever the speed of the machine.
FETCH_WAIT_MILLIS = 120_000
PATIENCE_MILLIS = 60_000


@pytest.fixture
def address(tmp_path):
    file = tmp_path / "kafka.address"
    process = subprocess.Popen([sys.executable, "-m", "gpt2_orchestration.stack.kafka_broker", str(file), "events"])
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield file.read_text()
    process.terminate()
    assert process.wait(timeout=120) == 0


@pytest.fixture
def consumer(address):
    consumer = KafkaConsumer(
        bootstrap_servers=address, group_id=None, auto_offset_reset="none", fetch_max_wait_ms=FETCH_WAIT_MILLIS
    )
    consumer.assign([TopicPartition("events", 0)])
    yield consumer
    consumer.close()


def test_a_waiting_fetch_is_answered_when_a_record_is_produced(address, consumer):
    consumer.seek(TopicPartition("events", 0), 0)
    assert consumer.poll(timeout_ms=500) == {}  # the fetch has reached the broker, and waits
    producer = KafkaProducer(bootstrap_servers=address)
    for value in (b"first", b"second"):
        producer.send("events", value=value, partition=0).get(timeout=60)
        (records,) = consumer.poll(timeout_ms=PATIENCE_MILLIS).values()
        assert [record.value for record in records] == [value]
    producer.close()


def test_an_error_of_a_partition_is_answered_at_once(consumer):
    consumer.seek(TopicPartition("events", 0), 1000)
    with pytest.raises(OffsetOutOfRangeError):
        consumer.poll(timeout_ms=PATIENCE_MILLIS)
