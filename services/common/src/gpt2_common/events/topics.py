"""The topics: created with explicit partitions, retention and sizes where they are missing, never by accident."""

import logging

from kafka import KafkaConsumer
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import TopicAlreadyExistsError

_log = logging.getLogger(__name__)

PARTITIONS = 6
RETENTION_MILLIS = 30 * 24 * 3600 * 1000
LARGEST_DEAD_LETTER = 2 * 1024 * 1024
"""Bytes of a dead letter, which is a record with a reason beside it, and must fit too."""

LONGEST_BACKOFF_MILLIS = 2_000
"""Between attempts to reach a broker. The library's own half minute would go on after the broker is back."""

_TIMEOUT_MILLIS = 10_000


def dead_letter_topic(topic: str) -> str:
    """Where records of a topic go that cannot be handled."""
    return f"{topic}.dlq"


def ensure_topic(bootstrap_servers: str, name: str, largest_record: int | None = None) -> None:
    """Creates a topic unless it is there.

    Args:
        bootstrap_servers: Kafka brokers, separated by commas.
        name: The topic.
        largest_record: Most bytes of a record. Default: what the brokers take.

    Raises:
        KafkaError: No broker answers, or it refuses.
    """
    # A consumer's list of topics creates none by asking, and every broker answers it.
    consumer = KafkaConsumer(bootstrap_servers=bootstrap_servers, group_id=None)
    try:
        if name in consumer.topics():
            return
    finally:
        consumer.close()
    configuration = {"retention.ms": str(RETENTION_MILLIS)}
    if largest_record is not None:
        configuration["max.message.bytes"] = str(largest_record)
    admin = KafkaAdminClient(bootstrap_servers=bootstrap_servers, request_timeout_ms=_TIMEOUT_MILLIS)
    try:
        # -1: as many copies as the brokers' default says.
        admin.create_topics([NewTopic(name, PARTITIONS, -1, topic_configs=configuration)], timeout_ms=_TIMEOUT_MILLIS)
    except TopicAlreadyExistsError:
        _log.debug("topic %s was created by another service", name)
    finally:
        admin.close()
