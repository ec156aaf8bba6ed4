"""The event log: events of the services on Kafka, read from the beginning to the current end."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf import message_factory
from google.protobuf.message import DecodeError, Message
from grpc import StatusCode
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from gpt2.events.v1 import events_pb2
from gpt2_contracts.events import DEFAULT_TOPIC, EventAttributes
from gpt2_orchestration.client.service_client import ServiceError

_EVENTS = events_pb2.DESCRIPTOR.package
_POLL_MILLIS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedEvent:
    """One event."""

    id: str
    source: str
    time: str
    key: str
    """Partition key: run id or model name."""
    subject: str
    type: str
    message: Message
    """One of `gpt2.events.v1`."""


def list_events(bootstrap_servers: str, topic: str = DEFAULT_TOPIC, key: str = "") -> list[LoggedEvent]:
    """The retained events, deduplicated, oldest first within each key.

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
            # Delivery is at least once.
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


def event_message(kind: str, value: bytes | None) -> Message | None:
    """Parses the message of an event.

    Args:
        kind: Its CloudEvents type.
        value: The record's value.

    Returns:
        A message of `gpt2.events.v1`; None for types that this version does not know.
    """
    if not kind.startswith(f"{_EVENTS}."):
        return None
    try:
        # A newer service may publish types that this version does not know.
        descriptor = events_pb2.DESCRIPTOR.message_types_by_name[kind.removeprefix(f"{_EVENTS}.")]
        message = message_factory.GetMessageClass(descriptor)()
        message.ParseFromString(value or b"")
    except (KeyError, DecodeError):
        return None
    return message


def _event(record: Any) -> LoggedEvent | None:
    """Parses a record; None where it is not an event of the services."""
    attributes = EventAttributes.from_headers(record.headers)
    message = event_message(attributes.type, record.value)
    if message is None:
        return None
    return LoggedEvent(
        id=attributes.id,
        source=attributes.source,
        time=attributes.time,
        key=attributes.partitionkey,
        subject=attributes.subject,
        type=attributes.type,
        message=message,
    )
