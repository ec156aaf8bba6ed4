"""Health of a consumer: whether it receives events, and whether it must be replaced.

Source: kafka-python consumers can stall for good when brokers restart (its issues 1477 and 2422); membership.py
describes how a group can lose its partitions.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from kafka import KafkaConsumer, TopicPartition

from gpt2_common.events.membership import CountingAssignor, known_partitions, seconds_since_response

_STALLED_SESSIONS = 3
"""More than one, as a killed member blocks the rebalance until its session expires."""


@dataclass(frozen=True, slots=True)
class ConsumerHealth:
    """Whether events are received."""

    seconds_since_healthy: float
    """Time since events were received, or would have been if there had been any."""
    problem: str
    """Why not now; empty when they are."""


class ConsumerWatch:
    """Watches one consumer of kafka-python.

    Args:
        consumer: The consumer.
        assignor: Its assignor.
        topic: The topic it reads.
        session_seconds: Heartbeat timeout of its group.
    """

    def __init__(self, consumer: KafkaConsumer, assignor: CountingAssignor, topic: str, session_seconds: float) -> None:
        self._consumer = consumer
        self._assignor = assignor
        self._topic = topic
        self._session_seconds = session_seconds
        self._current_at = self._checked_at = time.monotonic()
        self._positions: Mapping[TopicPartition, int] = {}
        self._ends: Mapping[TopicPartition, int] = {}

    def problem(self) -> str:
        """Why no events are received now; empty when they are. Makes no request."""
        assigned_of, known = self._assignor.partitions, known_partitions(self._consumer, self._topic)
        if not known:
            return f"the topic {self._topic} does not exist"
        if assigned_of is None and not self._consumer.assignment():
            return "its group has given it no partitions"
        if assigned_of is not None and assigned_of != known:
            return f"its group has assigned {assigned_of} of {known} partitions"
        if seconds_since_response(self._consumer) > self._session_seconds:
            return "its group does not answer"
        return ""

    def must_be_replaced(self) -> str:
        """Why the consumer cannot recover by itself; empty when it may. Queries the broker now and then."""
        now = time.monotonic()
        assigned_of = self._assignor.partitions
        # Between a change of the topic and a new assignment, and before the first one, there may be a rebalance.
        current = assigned_of == known_partitions(self._consumer, self._topic) and assigned_of != 0
        if current or (assigned_of is None and self._consumer.assignment()):
            self._current_at = now
        patience = _STALLED_SESSIONS if assigned_of is None else 1
        if now - self._current_at > patience * self._session_seconds:
            self._current_at = now
            return self.problem() or "its group has given it no partitions"
        # Where the group does not respond, neither would the broker, and the request would block.
        if now - self._checked_at > _STALLED_SESSIONS * self._session_seconds and not self.problem():
            self._checked_at = now
            return self._find_stalled()
        return ""

    def _find_stalled(self) -> str:
        """Finds a partition with unread records whose position has not changed since the last check."""
        running = self._consumer.assignment() - self._consumer.paused()
        before, behind = self._positions, self._ends
        self._ends = self._consumer.end_offsets(list(running)) if running else {}
        self._positions = {partition: self._consumer.position(partition) for partition in running}
        stalled = [
            partition.partition
            for partition, position in self._positions.items()
            if before.get(partition) == position != behind.get(partition)
        ]
        return f"it is stalled on partitions {sorted(stalled)}" if stalled else ""
