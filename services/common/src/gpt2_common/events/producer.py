"""The producer of events and dead letters: idempotent, acknowledged by all replicas, with bounded timeouts.

Source: kafka-python's producer cannot be closed while a record is in flight: it raises and continues to send. So a
record times out before anyone stops waiting for it.
"""

import logging

from kafka import KafkaProducer
from kafka.errors import KafkaError

from gpt2_common.events.topics import MAX_BACKOFF_MILLIS

_log = logging.getLogger(__name__)

SEND_SECONDS = 30.0
"""Maximum wait for a record; longer than the producer itself retries."""

_REQUEST_MILLIS = 10_000
_DELIVERY_MILLIS = 15_000
_CLOSE_SECONDS = 5.0


def connect_producer(bootstrap_servers: str, max_record_bytes: int | None = None) -> KafkaProducer:
    """Connects to the brokers. Raises KafkaError.

    Args:
        bootstrap_servers: Kafka brokers, separated by commas.
        max_record_bytes: Maximum bytes of a record. Default: the library's.
    """
    sizes = {} if max_record_bytes is None else {"max_request_size": max_record_bytes}
    return KafkaProducer(
        bootstrap_servers=bootstrap_servers,
        acks="all",
        allow_auto_create_topics=False,
        enable_idempotence=True,
        max_block_ms=_REQUEST_MILLIS,
        request_timeout_ms=_REQUEST_MILLIS,
        delivery_timeout_ms=_DELIVERY_MILLIS,
        reconnect_backoff_max_ms=MAX_BACKOFF_MILLIS,
        linger_ms=0,
        **sizes,
    )


def close_producer(producer: KafkaProducer) -> None:
    """Closes the producer; one that cannot be closed is logged and abandoned."""
    try:
        producer.close(timeout=_CLOSE_SECONDS)
    except KafkaError as error:
        _log.warning("a producer was left behind, as it could not be closed: %s", error)
