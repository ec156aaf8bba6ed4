"""Events on Kafka: CloudEvents 1.0 in binary mode, their topics, and the headers of dead letters.

Source: CloudEvents specification 1.0.2, Kafka protocol binding, section 3.2. The values are messages of gpt2.events.v1.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Self

DEFAULT_TOPIC = "gpt2.stage-events.v1"
CONTENT_TYPE = "application/protobuf"
SPEC_VERSION = "1.0"

Headers = Sequence[tuple[str, bytes]]

_DEAD_LETTER_PREFIX = "dlq_"


def dead_letter_topic(topic: str) -> str:
    """The topic of the records of another one that a consumer could not handle."""
    return f"{topic}.dlq"


def source_of(service: str) -> str:
    """The CloudEvents source of a service's events, such as `/gpt2/trainer`."""
    return f"/gpt2/{service}"


class InvalidEvent(Exception):
    """A Kafka record is no CloudEvent that this release reads; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CloudEvent:
    """One event. `source` and `id` together identify it, however often it is delivered."""

    id: str
    source: str
    """Service that produced it; see `source_of`."""
    type: str
    """Full name of the protobuf message in `data`."""
    subject: str
    """What it is about: a job's id, or a model's name."""
    key: str
    """Partition key: events of one key keep their order."""
    time: datetime
    data: bytes

    def headers(self) -> list[tuple[str, bytes]]:
        """The record's headers."""
        attributes = {
            "ce_specversion": SPEC_VERSION,
            "ce_id": self.id,
            "ce_source": self.source,
            "ce_type": self.type,
            "ce_subject": self.subject,
            "ce_time": self.time.isoformat(),
            "ce_partitionkey": self.key,
            "content-type": CONTENT_TYPE,
        }
        return [(name, value.encode()) for name, value in attributes.items()]

    @classmethod
    def from_record(cls, headers: Headers, value: bytes | None) -> Self:
        """Reads an event from a record's headers and value. Raises InvalidEvent."""
        try:
            attributes = {name: content.decode() for name, content in headers}
            if attributes["ce_specversion"] != SPEC_VERSION:
                raise InvalidEvent(
                    f"CloudEvents version {attributes['ce_specversion']} is not {SPEC_VERSION}: update the service"
                )
            if attributes["content-type"] != CONTENT_TYPE or value is None:
                raise InvalidEvent(f"content-type is {attributes['content-type']!r}, not {CONTENT_TYPE}, or no value")
            return cls(
                id=attributes["ce_id"],
                source=attributes["ce_source"],
                type=attributes["ce_type"],
                subject=attributes.get("ce_subject", ""),
                key=attributes.get("ce_partitionkey", ""),
                time=datetime.fromisoformat(attributes["ce_time"]),
                data=value,
            )
        except (KeyError, ValueError) as error:
            raise InvalidEvent(f"no CloudEvent: {error!r}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class EventAttributes:
    """The attributes of a record of any origin, as text; those that it lacks are empty."""

    id: str
    source: str
    type: str
    subject: str
    time: str
    """RFC 3339."""
    partitionkey: str

    @classmethod
    def from_headers(cls, headers: Iterable[tuple[str, bytes]]) -> Self:
        """Reads the attributes of a record; bytes that are not UTF-8 are replaced."""
        texts = text_headers(headers)
        return cls(**{item.name: texts.get(f"ce_{item.name}", "") for item in fields(cls)})


@dataclass(frozen=True, kw_only=True, slots=True)
class DeadLetterHeaders:
    """Why and where a record could not be handled; its own headers, key and value stay as they came."""

    reason: str
    """Type and text of the error."""
    stack: str
    """Traceback."""
    consumer: str
    """Consumer group that could not handle it."""
    topic: str
    partition: str
    offset: str
    """Where the record was."""
    time: str
    """When it became a dead letter, RFC 3339."""

    def headers(self) -> list[tuple[str, bytes]]:
        """The headers to add to the record's own."""
        return [(_DEAD_LETTER_PREFIX + name, value.encode()) for name, value in asdict(self).items()]

    @classmethod
    def from_headers(cls, headers: Iterable[tuple[str, bytes]]) -> Self:
        """Reads a dead letter's headers; what it lacks is empty."""
        texts = text_headers(headers)
        return cls(**{item.name: texts.get(_DEAD_LETTER_PREFIX + item.name, "") for item in fields(cls)})


def original_headers(headers: Headers) -> list[tuple[str, bytes]]:
    """The headers that the record of a dead letter had at first."""
    return [(name, value) for name, value in headers if not name.startswith(_DEAD_LETTER_PREFIX)]


def text_headers(headers: Iterable[tuple[str, bytes]]) -> Mapping[str, str]:
    """Headers as text, by name; bytes that are not UTF-8 are replaced."""
    return {name: (value or b"").decode(errors="replace") for name, value in headers}
