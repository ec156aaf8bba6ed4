"""CloudEvents 1.0 in Kafka's binary mode: attributes as `ce_*` headers, a protobuf message as the value.

Source: CloudEvents specification 1.0.2, Kafka protocol binding, section 3.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

CONTENT_TYPE = "application/protobuf"


class InvalidEvent(Exception):
    """A Kafka record is no CloudEvent that this version reads; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CloudEvent:
    """One event. `source` and `id` together identify it, however often it is delivered."""

    id: str
    source: str
    """Service that says it, such as `/gpt2/trainer`."""
    type: str
    """Full name of the protobuf message in `data`."""
    subject: str
    """What it is about: a job's id."""
    key: str
    """Partition key: events of one key keep their order."""
    time: datetime
    data: bytes

    def headers(self) -> list[tuple[str, bytes]]:
        """The record's headers."""
        attributes = {
            "ce_specversion": "1.0",
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
    def from_record(cls, headers: Sequence[tuple[str, bytes]], value: bytes | None) -> "CloudEvent":
        """Reads an event from a record's headers and value. Raises InvalidEvent."""
        try:
            attributes = {name: content.decode() for name, content in headers}
            if attributes["ce_specversion"] != "1.0":
                raise InvalidEvent(f"CloudEvents version {attributes['ce_specversion']} is not 1.0")
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
