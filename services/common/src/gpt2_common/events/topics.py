"""Creation of topics, with explicit partitions, retention and record size. Brokers' auto-creation is not used."""

import logging

from kafka import KafkaConsumer
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import TopicAlreadyExistsError

_log = logging.getLogger(__name__)

PARTITIONS = 6
RETENTION_MILLIS = 30 * 24 * 3600 * 1000
MAX_DEAD_LETTER_BYTES = 2 * 1024 * 1024
"""Maximum bytes of a dead letter, which is a record with further headers."""

MAX_BACKOFF_MILLIS = 2_000
"""Maximum wait between attempts to reach a broker. The library's own half minute delays events after an outage."""

_TIMEOUT_MILLIS = 10_000


def ensure_topic(bootstrap_servers: str, name: str, max_record_bytes: int | None = None) -> None:
    """Creates a topic unless it exists.

    Args:
        bootstrap_servers: Kafka brokers, separated by commas.
        name: The topic.
        max_record_bytes: Maximum bytes of a record. Default: the brokers'.

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
    if max_record_bytes is not None:
        configuration["max.message.bytes"] = str(max_record_bytes)
    admin = KafkaAdminClient(bootstrap_servers=bootstrap_servers, request_timeout_ms=_TIMEOUT_MILLIS)
    try:
        # -1: the brokers' default replication.
        admin.create_topics([NewTopic(name, PARTITIONS, -1, topic_configs=configuration)], timeout_ms=_TIMEOUT_MILLIS)
    except TopicAlreadyExistsError:
        _log.debug("topic %s was created by another service", name)
    finally:
        admin.close()
