"""Consumes Kafka's events from the latest offset while the dashboard runs, without a consumer group or stored state."""

import asyncio
import logging
import threading
from contextlib import suppress
from typing import Any

from kafka import KafkaConsumer
from kafka.errors import KafkaError

from gpt2_contracts.events import EventAttributes
from gpt2_orchestration.dashboard.live import Changes

# As for the services' consumers: a broker answers a fetch as soon as it has a record.
_POLL_MILLIS = 1_000
_FETCH_WAIT_MILLIS = 3_000
_RETRY_SECONDS = 5.0
# By default it would take five minutes until a topic that was deleted and created again is read.
_METADATA_MILLIS = 15_000

_log = logging.getLogger(__name__)


class EventReader:
    """Consumes Kafka's events on a background thread, from the latest offset; reconnects when a broker is back.

    Args:
        bootstrap_servers: Kafka brokers.
        topic: The topic of events.
        changes: Receives them.
        loop: The event loop of `changes`.
    """

    def __init__(self, bootstrap_servers: str, topic: str, changes: Changes, loop: asyncio.AbstractEventLoop) -> None:
        self._servers = bootstrap_servers
        self._topic = topic
        self._changes = changes
        self._loop = loop
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stops the thread."""
        self._ending.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                self._read()
            except KafkaError as error:
                # The page keeps working: it polls the services.
                _log.warning("Kafka at %s does not answer (%s)", self._servers, error)
                self._ending.wait(_RETRY_SECONDS)

    def _read(self) -> None:
        consumer: Any = KafkaConsumer(
            self._topic,
            bootstrap_servers=self._servers,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="latest",
            allow_auto_create_topics=False,
            metadata_max_age_ms=_METADATA_MILLIS,
            fetch_max_wait_ms=_FETCH_WAIT_MILLIS,
        )
        try:
            while not self._ending.is_set():
                for records in consumer.poll(timeout_ms=_POLL_MILLIS).values():
                    for record in records:
                        self._receive(EventAttributes.from_headers(record.headers).type, record.value or b"")
        finally:
            consumer.close()

    def _receive(self, kind: str, value: bytes) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._changes.receive_event, kind, value)
