"""Reads the events on Kafka as long as the dashboard runs, from now on, without a consumer group: it keeps nothing."""

import asyncio
import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from kafka import KafkaConsumer
from kafka.errors import KafkaError

from gpt2_orchestration.dashboard.live import Changes

_POLL_MILLIS = 500
_RETRY_SECONDS = 5.0

_log = logging.getLogger(__name__)


class EventReader:
    """Reads Kafka's events on a thread of its own, from now on, and comes back to a broker that was away.

    Args:
        bootstrap_servers: Kafka brokers.
        topic: The topic of events.
        changes: Hears of them.
        loop: Where `changes` lives.
    """

    def __init__(self, bootstrap_servers: str, topic: str, changes: Changes, loop: asyncio.AbstractEventLoop) -> None:
        self._servers = bootstrap_servers
        self._topic = topic
        self._changes = changes
        self._loop = loop
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends."""
        self._ending.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                self._read()
            except KafkaError as error:
                # The page goes on with what it asks for.
                _log.warning("Kafka at %s is not heard (%s)", self._servers, error)
                self._ending.wait(_RETRY_SECONDS)

    def _read(self) -> None:
        consumer: Any = KafkaConsumer(
            self._topic,
            bootstrap_servers=self._servers,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="latest",
        )
        try:
            while not self._ending.is_set():
                for records in consumer.poll(timeout_ms=_POLL_MILLIS).values():
                    for record in records:
                        self._hear(dict(record.headers), record.value or b"")
        finally:
            consumer.close()

    def _hear(self, headers: Mapping[str, bytes], value: bytes) -> None:
        kind = headers.get("ce_type", b"").decode(errors="replace")
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._changes.hear_event, kind, value)
