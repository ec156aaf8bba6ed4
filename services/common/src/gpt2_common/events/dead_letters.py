"""The producer of dead letters: records that could not be handled, as they came, with headers that say why.

The headers are gpt2_contracts.events.DeadLetterHeaders.
"""

from datetime import UTC, datetime
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError

from gpt2_common.escaping import escape_surrogates
from gpt2_common.events.producer import SEND_SECONDS, close_producer, connect_producer
from gpt2_common.events.topics import MAX_DEAD_LETTER_BYTES, ensure_topic
from gpt2_contracts.events import DeadLetterHeaders, dead_letter_topic

_MAX_REASON = 1000
_MAX_STACK = 16 * 1024


class DeadLetters:
    """Produces the dead letters of one consumer.

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
        """Produces a record as a dead letter, and returns when the broker has it. Raises KafkaError."""
        if self._producer is None:
            ensure_topic(self._servers, self._topic, MAX_DEAD_LETTER_BYTES)
            self._producer = connect_producer(self._servers, MAX_DEAD_LETTER_BYTES)
        added = DeadLetterHeaders(
            reason=escape_surrogates(f"{type(error).__name__}: {error}"[:_MAX_REASON]),
            stack=escape_surrogates(stack[-_MAX_STACK:]),
            consumer=self._consumer,
            topic=record.topic,
            partition=str(record.partition),
            offset=str(record.offset),
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        headers = [*record.headers, *added.headers()]
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
