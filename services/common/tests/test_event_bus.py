"""What consumers are promised of events: one suite for the bus in memory, the embedded broker and Apache Kafka."""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime

import pytest
from event_bus import EventBus, InMemoryEventBus, KafkaEventBus
from free_ports import free_port

from gpt2_common.database import open_database
from gpt2_common.events.consumer import RetryLater
from gpt2_common.events.outbox import add_to_outbox, count_pending_events
from gpt2_contracts.events import CloudEvent

from .brokers import TOPIC, ApacheKafka, EmbeddedBroker, require_java


@pytest.fixture(scope="module")
def embedded_broker(tmp_path_factory) -> Iterator[str]:
    broker = EmbeddedBroker(tmp_path_factory.mktemp("embedded")).start()
    yield broker.address
    broker.stop()


@pytest.fixture(scope="module")
def apache_broker(tmp_path_factory) -> Iterator[str]:
    require_java()
    broker = ApacheKafka(tmp_path_factory.mktemp("apache"), free_port()).start()
    yield broker.address
    broker.stop()


@pytest.fixture(
    params=[
        "memory",
        pytest.param("embedded", marks=pytest.mark.process),
        pytest.param("apache", marks=pytest.mark.process),
    ]
)
def bus(request) -> Iterator[EventBus]:
    if request.param == "memory":
        yield InMemoryEventBus()
        return
    address = request.getfixturevalue(f"{request.param}_broker")
    with ExitStack() as stopping:
        yield KafkaEventBus(address, TOPIC, stopping)


@pytest.fixture
def publish(bus, tmp_path) -> Iterator[Callable[[str, str], None]]:
    """Commits an event of a key to an outbox that the bus publishes."""
    with open_database(f"sqlite:///{tmp_path / 'events.db'}") as engine:
        source = f"/test/{uuid.uuid4().hex}"
        bus.add_source(engine, source)

        def commit(key: str, event_id: str) -> None:
            event = CloudEvent(
                id=event_id, source=source, type="t", subject=event_id, key=key, time=datetime.now(UTC), data=b"content"
            )
            with engine.begin() as connection:
                add_to_outbox(connection, event)

        commit.pending = lambda: count_pending_events(engine, source)
        yield commit


def deliver_until(bus: EventBus, enough: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not enough():
        assert time.monotonic() < deadline
        bus.deliver()
        time.sleep(0.01)


class Handler:
    """Notes what it takes; raises what `errors` has for an event, once for each entry."""

    def __init__(self, **errors: list[Exception]) -> None:
        self.taken: list[CloudEvent] = []
        self.errors = errors

    def __call__(self, event: CloudEvent) -> None:
        if self.errors.get(event.id):
            raise self.errors[event.id].pop(0)
        self.taken.append(event)

    def ids(self, key: str) -> list[str]:
        """Of the key, each at its first delivery."""
        return list(dict.fromkeys(event.id for event in self.taken if event.key == key))


def test_every_group_is_given_every_event_in_the_order_of_its_key(bus, publish):
    first, second = Handler(), Handler()
    expected = {"red": ["r1", "r2", "r3"], "blue": ["b1", "b2"]}
    for event_id in ("r1", "b1", "r2", "b2", "r3"):
        publish("red" if event_id[0] == "r" else "blue", event_id)
    bus.subscribe("first", first)
    bus.subscribe("second", second)
    deliver_until(bus, lambda: all(h.ids(key) == ids for h in (first, second) for key, ids in expected.items()))
    assert first.taken[0].data == b"content"
    deliver_until(bus, lambda: publish.pending() == 0)


def test_an_event_that_cannot_be_taken_now_comes_again_before_those_of_its_key(bus, publish):
    handler = Handler(r1=[RetryLater("full"), RetryLater("full")])
    bus.subscribe("group", handler)
    for event_id in ("r1", "r2", "b1"):
        publish("red" if event_id[0] == "r" else "blue", event_id)
    deliver_until(bus, lambda: handler.ids("red") == ["r1", "r2"] and handler.ids("blue") == ["b1"])
    assert handler.errors == {"r1": []}


def test_an_event_that_is_never_taken_stops_none_behind_it(bus, publish):
    handler = Handler(r1=[ValueError("no event of ours")])
    bus.subscribe("group", handler)
    for event_id in ("r1", "r2"):
        publish("red", event_id)
    deliver_until(bus, lambda: handler.ids("red") == ["r2"])
