"""The commands on events read the topic that GPT2_KAFKA_TOPIC names, and its dead letters."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kafka import KafkaProducer

pytestmark = pytest.mark.process

GPT2 = Path(sys.executable).with_name("gpt2")
TOPIC = "other.events"


@pytest.fixture(scope="module")
def kafka(tmp_path_factory):
    """The address of a broker that has events and a dead letter of another topic."""
    file = tmp_path_factory.mktemp("kafka") / "address"
    module = "gpt2_orchestration.stack.kafka_broker"
    with subprocess.Popen([sys.executable, "-m", module, str(file), TOPIC, f"{TOPIC}.dlq"]) as broker:
        deadline = time.monotonic() + 60
        while not file.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        address = file.read_text()
        producer = KafkaProducer(bootstrap_servers=address)
        kind = b"gpt2.events.v1.ModelLabelChanged"
        headers = [("ce_id", b"1"), ("ce_source", b"/gpt2/registry"), ("ce_type", kind), ("ce_partitionkey", b"m")]
        producer.send(TOPIC, key=b"m", value=b"", headers=headers).get(timeout=60)
        letter = [*headers, ("dlq_reason", b"no reason"), ("dlq_topic", TOPIC.encode())]
        producer.send(f"{TOPIC}.dlq", key=b"m", value=b"", headers=letter).get(timeout=60)
        producer.close()
        yield address
        broker.terminate()


@pytest.mark.parametrize("by", ["variable", "option"])
def test_events_and_dead_letters_are_those_of_the_topic_that_is_configured(kafka, by, tmp_path):
    environment = {**os.environ, "GPT2_KAFKA_BOOTSTRAP_SERVERS": kafka}
    options = ("--topic", TOPIC) if by == "option" else ()
    if by == "variable":
        environment["GPT2_KAFKA_TOPIC"] = TOPIC

    def listed(*command: str) -> list:
        called = [str(GPT2), "events", *command, "--json", *options]
        answer = subprocess.run(called, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert answer.returncode == 0, answer.stderr
        return json.loads(answer.stdout)

    assert [event["key"] for event in listed("list")] == ["m"]
    assert [letter["reason"] for letter in listed("dlq", "list")] == ["no reason"]
