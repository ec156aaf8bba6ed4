"""Dead letters: records that could not be handled, as they came, with headers that say why.

| header | content |
|---|---|
| dlq_reason | type and text of the error |
| dlq_stack | where it happened |
| dlq_consumer | group that could not handle it |
| dlq_topic, dlq_partition, dlq_offset | where the record was |
| dlq_time | when it was put aside |
"""

from datetime import UTC, datetime
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError

from gpt2_common.escaping import escape_surrogates
from gpt2_common.events.producer import SEND_SECONDS, close_producer, connect_producer
from gpt2_common.events.topics import LARGEST_DEAD_LETTER, dead_letter_topic, ensure_topic

PREFIX = "dlq_"
_LONGEST_REASON = 1000
_LONGEST_STACK = 16 * 1024


class DeadLetters:
    """Where one consumer puts what it cannot handle.

    Args:
        bootstrap_servers: Kafka brokers, separated by commas.
        topic: Topic that the records came from.
        consumer: Group that could not handle them.
    """

    def __init__(self, bootstrap_servers: str, topic: str, consumer: str) -> None:
        self._servers = bootstrap_servers
        self._topic = dead_letter_topic(topic)
        self._consumer = consumer
        self._producer: KafkaProducer | None = None

    def add(self, record: Any, error: BaseException, stack: str) -> None:
        """Puts a record aside, and returns when the broker has it. Raises KafkaError."""
        if self._producer is None:
            ensure_topic(self._servers, self._topic, LARGEST_DEAD_LETTER)
            self._producer = connect_producer(self._servers, LARGEST_DEAD_LETTER)
        reasons = {
            "reason": f"{type(error).__name__}: {error}"[:_LONGEST_REASON],
            "stack": stack[-_LONGEST_STACK:],
            "consumer": self._consumer,
            "topic": record.topic,
            "partition": str(record.partition),
            "offset": str(record.offset),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        headers = [
            *record.headers,
            *((PREFIX + name, escape_surrogates(value).encode()) for name, value in reasons.items()),
        ]
        try:
            sent = self._producer.send(self._topic, key=record.key, value=record.value, headers=headers)
            sent.get(timeout=SEND_SECONDS)
        except KafkaError:
            self.close()
            raise

    def close(self) -> None:
        """Closes the connection."""
        producer, self._producer = self._producer, None
        if producer is not None:
            close_producer(producer)
