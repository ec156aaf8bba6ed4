"""The event log: what the services have said on Kafka, read from its beginning to its end of now."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf import message_factory
from google.protobuf.message import DecodeError, Message
from grpc import StatusCode
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from gpt2.events.v1 import events_pb2
from gpt2_orchestration.client import ServiceError

EVENT_TOPIC = "gpt2.stage-events.v1"
_EVENTS = events_pb2.DESCRIPTOR.package
_POLL_MILLIS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedEvent:
    """One event, as it was first published."""

    id: str
    source: str
    time: str
    key: str
    """Run, or model, whose events are in order."""
    subject: str
    type: str
    message: Message
    """One of `gpt2.events.v1`."""


def list_events(bootstrap_servers: str, topic: str = EVENT_TOPIC, key: str = "") -> list[LoggedEvent]:
    """The events that the broker keeps, each once, oldest first within each key.

    Args:
        bootstrap_servers: Kafka brokers, separated by commas.
        topic: Topic of the events.
        key: Only those of this run or model, unless empty.

    Raises:
        ServiceError: The broker does not answer.
    """
    events: dict[tuple[str, str], LoggedEvent] = {}
    for record in read_topic(bootstrap_servers, topic):
        event = _event(record)
        if event is not None and key in ("", event.key):
            # Events are published at least once.
            events.setdefault((event.source, event.id), event)
    return list(events.values())


def read_topic(bootstrap_servers: str, topic: str) -> list[Any]:
    """All records of a topic, oldest first in each partition; none where it does not exist. Raises ServiceError."""
    try:
        consumer = KafkaConsumer(
            bootstrap_servers=bootstrap_servers,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        try:
            return list(_read_to_end(consumer, topic))
        finally:
            consumer.close()
    except KafkaError as error:
        message = (
            f"Kafka at {bootstrap_servers} does not answer ({error}): set --kafka or GPT2_KAFKA_BOOTSTRAP_SERVERS to "
            "the broker's address; `gpt2 stack status` prints that of the embedded stack"
        )
        raise ServiceError(message, StatusCode.UNAVAILABLE) from error


def _read_to_end(consumer: KafkaConsumer, topic: str) -> Iterator[Any]:
    partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()]
    consumer.assign(partitions)
    ends = consumer.end_offsets(partitions) if partitions else {}
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        for records in consumer.poll(timeout_ms=_POLL_MILLIS).values():
            yield from records


def text_headers(record: Any) -> dict[str, str]:
    """The headers of a record as text, by name."""
    return {name: value.decode(errors="replace") for name, value in record.headers}


def event_message(kind: str, value: bytes | None) -> Message | None:
    """What an event says.

    Args:
        kind: Its CloudEvents type.
        value: The record's value.

    Returns:
        A message of `gpt2.events.v1`; None where it is none that this version knows.
    """
    if not kind.startswith(f"{_EVENTS}."):
        return None
    try:
        # A newer service may say what this version does not know.
        descriptor = events_pb2.DESCRIPTOR.message_types_by_name[kind.removeprefix(f"{_EVENTS}.")]
        message = message_factory.GetMessageClass(descriptor)()
        message.ParseFromString(value or b"")
    except (KeyError, DecodeError):
        return None
    return message


def _event(record: Any) -> LoggedEvent | None:
    """Reads a record; None where it is no event of these services."""
    headers = text_headers(record)
    kind = headers.get("ce_type", "")
    message = event_message(kind, record.value)
    if message is None:
        return None
    return LoggedEvent(
        id=headers.get("ce_id", ""),
        source=headers.get("ce_source", ""),
        time=headers.get("ce_time", ""),
        key=headers.get("ce_partitionkey", ""),
        subject=headers.get("ce_subject", ""),
        type=kind,
        message=message,
    )
