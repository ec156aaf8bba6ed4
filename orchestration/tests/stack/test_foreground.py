"""The whole stack with its real backends, in another process, as `gpt2 stack` runs it."""

import json
import signal
import urllib.request
from ipaddress import ip_address

import psutil
import pytest
from kafka import KafkaConsumer, KafkaProducer
from pymongo import MongoClient

from gpt2_contracts.events import DEFAULT_TOPIC, dead_letter_topic
from gpt2_orchestration.stack.control import stack_status
from gpt2_orchestration.stack.errors import NotRunning
from gpt2_orchestration.stack.process_identity import identify
from gpt2_orchestration.stack.process_table import wait_gone
from gpt2_orchestration.stack.readiness import grpc_answers
from gpt2_orchestration.stack.stopping import stop_stack

pytestmark = pytest.mark.process


def family_of(stack):
    members = psutil.Process(stack.pid).children(recursive=True)
    return [identity for member in members if (identity := identify(member.pid))]


def commands_left(family):
    """Command lines of the members that are still there after a moment for the kernel to clear up."""
    return [psutil.Process(identity.pid).cmdline() for identity in wait_gone(family, 10)]


def check_backends(addresses):
    with MongoClient(addresses["mongodb_uri"]) as client:
        client["demo"]["articles"].insert_one({"text": "Grüße"})
        assert client["demo"]["articles"].find_one({}, {"_id": 0}) == {"text": "Grüße"}
    with urllib.request.urlopen(addresses["tensorboard_uri"]) as page:
        assert b"TensorBoard" in page.read()
    with urllib.request.urlopen(addresses["dashboard_uri"]) as page:
        assert b"GPT-2 pipeline" in page.read()
    url = f"{addresses['mlflow_uri']}/api/2.0/mlflow/experiments/get?experiment_id=0"
    with urllib.request.urlopen(url) as answer:
        assert json.load(answer)["experiment"]["artifact_location"].startswith("file://")


def check_kafka(servers):
    producer = KafkaProducer(bootstrap_servers=servers, acks="all", enable_idempotence=True)
    producer.send(DEFAULT_TOPIC, key=b"run", value=b"event").get(10)
    producer.close()
    consumer = KafkaConsumer(
        DEFAULT_TOPIC,
        bootstrap_servers=servers,
        group_id="test",
        auto_offset_reset="earliest",
        consumer_timeout_ms=20_000,
    )
    assert next(iter(consumer)).value == b"event"
    assert len(consumer.partitions_for_topic(DEFAULT_TOPIC)) == 6
    assert dead_letter_topic(DEFAULT_TOPIC) in consumer.topics()
    consumer.close()


def check_listens_on_loopback_alone(stack):
    members = psutil.Process(stack.pid).children(recursive=True)
    listening = [c.laddr.ip for m in members for c in m.net_connections() if c.status == psutil.CONN_LISTEN]
    assert listening
    assert [ip for ip in listening if not ip_address(ip.removeprefix("::ffff:")).is_loopback] == []


def test_stack_serves_and_down_stops_all_of_it(start_foreground):
    stack = start_foreground()
    addresses = stack.addresses()
    check_backends(addresses)
    check_kafka(addresses["kafka_bootstrap_servers"])
    assert all(grpc_answers(addresses[name]) for name in ("exporter", "tokenizer", "trainer", "registry"))
    check_listens_on_loopback_alone(stack)

    statuses = stack_status(stack.folder)
    assert [status.state for status in statuses] == ["ready"] * 9
    assert "nothing on disk" in next(status.note for status in statuses if status.name == "kafka")
    assert "refuses views, transactions" in next(status.note for status in statuses if status.name == "mongodb")
    second = start_foreground()
    code, errors = second.end()
    assert code != 0
    assert "already runs" in errors

    family = family_of(stack)
    stop_stack(stack.folder)
    code, errors = stack.end()
    assert (code, errors) == (0, "")
    assert commands_left(family) == []
    with pytest.raises(NotRunning):
        stack_status(stack.folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_starting_stops_all_of_it(start_foreground, number):
    stack = start_foreground()
    while not (stack.folder / "stack.json").exists():
        pass
    family = family_of(stack)
    assert family
    stack.send(number)
    code, errors = stack.end()
    assert (code, errors) == (0, "")
    assert commands_left(family) == []


def test_nothing_outlives_a_killed_stack_and_data_is_kept(start_foreground):
    stack = start_foreground()
    addresses = stack.addresses()
    with MongoClient(addresses["mongodb_uri"]) as client:
        client["demo"]["articles"].insert_one({"text": "kept"})
    family = family_of(stack)
    stack.send(signal.SIGKILL)
    stack.end()
    assert commands_left(family) == []

    again = start_foreground()
    with MongoClient(again.addresses()["mongodb_uri"]) as client:
        assert client["demo"]["articles"].find_one()["text"] == "kept"
    again.send(signal.SIGTERM)
    assert again.end() == (0, "")
