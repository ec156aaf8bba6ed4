"""The event bus as services see it: Kafka by the relay and the consumer, and one in memory for unit tests.

`test_event_bus.py` holds both to the same contract.
"""

import uuid
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

import sqlalchemy as sql

from gpt2_common.events.consumer import EventConsumer, RetryLater, Subscription
from gpt2_common.events.outbox import list_pending_events, remove_published
from gpt2_common.events.relay import OutboxRelay
from gpt2_common.lease import Lease, LeaseHolder
from gpt2_contracts.events import CloudEvent

Handler = Callable[[CloudEvent], None]
_BATCH = 1000


class EventBus(Protocol):
    """Takes the events of outboxes to all consumer groups, at least once and in order within each key."""

    def add_source(self, engine: sql.Engine, source: str) -> None:
        """Publishes the events of an outbox from now on."""

    def subscribe(self, group: str, handle: Handler) -> None:
        """Gives all events to a handler; one that raises RetryLater comes again, before those of its key behind it."""

    def deliver(self) -> None:
        """Lets time pass: publishes, and delivers what is due."""


@dataclass
class _Group:
    handle: Handler
    position: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """How many events of each key were handled."""


class InMemoryEventBus:
    """Delivers in the calling thread; an event that raises RetryLater is due again at the next `deliver`."""

    def __init__(self) -> None:
        self._sources: list[tuple[sql.Engine, str]] = []
        self._groups: dict[str, _Group] = {}
        self._log: dict[str, list[CloudEvent]] = defaultdict(list)
        self.dead_letters: list[tuple[str, CloudEvent, Exception]] = []
        """Group, event and error of what no handler takes."""

    def add_source(self, engine: sql.Engine, source: str) -> None:
        self._sources.append((engine, source))

    def subscribe(self, group: str, handle: Handler) -> None:
        self._groups[group] = _Group(handle)

    @property
    def published(self) -> list[CloudEvent]:
        """All events, by key."""
        return [event for events in self._log.values() for event in events]

    def deliver(self) -> None:
        self._publish()
        for name, group in self._groups.items():
            for key, events in self._log.items():
                self._deliver_key(name, group, key, events)

    def deliver_all(self) -> None:
        """Delivers until handlers cause no more events."""
        count = -1
        while count != len(self.published):
            count = len(self.published)
            self.deliver()

    def redeliver(self, group: str) -> None:
        """Gives a group all events once more, as after offsets that were lost."""
        self._groups[group].position.clear()
        self.deliver_all()

    def lose(self, group: str) -> None:
        """Keeps a group from what it has not been given, as a topic that is deleted does."""
        self._publish()
        self._groups[group].position.update({key: len(events) for key, events in self._log.items()})

    def _publish(self) -> None:
        for engine, source in self._sources:
            waiting = list_pending_events(engine, source, _BATCH)
            for item in waiting:
                self._log[item.event.key].append(item.event)
            remove_published(engine, [item.position for item in waiting])

    def _deliver_key(self, name: str, group: _Group, key: str, events: list[CloudEvent]) -> None:
        for event in events[group.position[key] :]:
            try:
                group.handle(event)
            except RetryLater:
                return
            except Exception as error:  # noqa: BLE001 - as the consumer does
                self.dead_letters.append((name, event, error))
            group.position[key] += 1


class KafkaEventBus:
    """Relays and consumers of this process at a broker whose topic tests share: handlers receive its own events.

    Args:
        address: The broker.
        topic: The topic.
        stopping: Stops the threads at its end.
    """

    def __init__(self, address: str, topic: str, stopping: ExitStack) -> None:
        self._address = address
        self._topic = topic
        self._stopping = stopping
        self._sources: set[str] = set()

    def add_source(self, engine: sql.Engine, source: str) -> None:
        self._sources.add(source)
        lease = Lease(engine, f"relay {source}", LeaseHolder.this_process(30.0))
        relay = OutboxRelay(engine, source, self._address, self._topic, lease)
        relay.start()
        self._stopping.callback(relay.stop, 10.0)

    def subscribe(self, group: str, handle: Handler) -> None:
        subscription = Subscription(
            bootstrap_servers=self._address,
            topic=self._topic,
            group=f"{group}-{uuid.uuid4().hex}",
            instance_id="",
            max_poll_seconds=60.0,
            session_seconds=10.0,
            metadata_seconds=5.0,
        )
        consumer = EventConsumer(subscription, lambda event: handle(event) if event.source in self._sources else None)
        consumer.start()
        self._stopping.callback(consumer.stop, 10.0)

    def deliver(self) -> None:
        """Threads deliver by themselves."""
