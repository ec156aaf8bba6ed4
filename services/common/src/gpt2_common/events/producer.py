"""The producer that events and dead letters are sent by: every copy has taken a record, or it is given up in time.

Source: kafka-python's producer cannot be closed while a record is under way; it then raises, and goes on sending. So a
record is given up before anyone stops waiting for it.
"""

import logging

from kafka import KafkaProducer
from kafka.errors import KafkaError

from gpt2_common.events.topics import LONGEST_BACKOFF_MILLIS

_log = logging.getLogger(__name__)

SEND_SECONDS = 30.0
"""How long to wait for a record, at most: longer than the producer itself tries."""

_REQUEST_MILLIS = 10_000
_DELIVERY_MILLIS = 15_000
_CLOSE_SECONDS = 5.0


def connect_producer(bootstrap_servers: str, largest_record: int | None = None) -> KafkaProducer:
    """Connects to the brokers. Raises KafkaError.

    Args:
        bootstrap_servers: Kafka brokers, separated by commas.
        largest_record: Most bytes of a record. Default: the library's.
    """
    sizes = {} if largest_record is None else {"max_request_size": largest_record}
    return KafkaProducer(
        bootstrap_servers=bootstrap_servers,
        acks="all",
        enable_idempotence=True,
        max_block_ms=_REQUEST_MILLIS,
        request_timeout_ms=_REQUEST_MILLIS,
        delivery_timeout_ms=_DELIVERY_MILLIS,
        reconnect_backoff_max_ms=LONGEST_BACKOFF_MILLIS,
        linger_ms=0,
        **sizes,
    )


def close_producer(producer: KafkaProducer) -> None:
    """Closes the connection, whatever state it is in."""
    try:
        producer.close(timeout=_CLOSE_SECONDS)
    except KafkaError as error:
        _log.warning("a producer was left behind, as it could not be closed: %s", error)
