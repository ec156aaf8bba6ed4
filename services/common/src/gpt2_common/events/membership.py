"""Membership in a consumer group: what kafka-python lacks.

A static member that rejoins a stable group gets the assignment that it had, as a follower, even where it leads the
group (KIP-345, KIP-814). Only a leader watches the topic; so after restarts a group can have no member that notices
that the topic was deleted and created again, or that partitions were added. Here every assignment says how many
partitions there were: each member compares, and one whose assignment is outdated leaves the group, which rebalances.
"""

import time
from typing import Any

from kafka import KafkaConsumer
from kafka.coordinator.assignors.range import RangePartitionAssignor

_LEAVE_MILLIS = 10_000


class CountingAssignor(RangePartitionAssignor):  # type: ignore[misc]
    """Range assignment that tells each member how many partitions of the topic were assigned.

    Args:
        topic: The one topic that the group is subscribed to.
    """

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self.partitions: int | None = None
        """At the time of this member's assignment; None before it has one, or where the leader does not send it."""

    def assign(self, cluster: Any, group_subscriptions: Any) -> Any:
        """Assigns the partitions, as the leader of the group."""
        count = len(cluster.partitions_for_topic(self._topic) or ())
        assignments = super().assign(cluster, group_subscriptions)
        for assignment in assignments.values():
            assignment.user_data = str(count).encode()
        return assignments

    def on_assignment(self, assignment: Any) -> None:
        """Records the number of partitions at the time of the assignment."""
        self.partitions = int(assignment.user_data) if assignment.user_data else None


def known_partitions(consumer: KafkaConsumer, topic: str) -> int:
    """Number of partitions in the consumer's cached metadata; makes no request, unlike the public method."""
    return len(consumer._client.cluster.partitions_for_topic(topic) or ())


def seconds_since_response(consumer: KafkaConsumer) -> float:
    """Time since the group coordinator last responded, or since the consumer joined."""
    heartbeat = consumer._coordinator.heartbeat
    return float(time.time() - max(heartbeat.last_receive, heartbeat.last_reset))


def leave_group(consumer: KafkaConsumer) -> None:
    """Closes a consumer and leaves its group, also where its membership is static."""
    # `close` sends no leave request for static members, as they are expected back.
    consumer._coordinator.is_dynamic_member = lambda: True
    consumer.close(autocommit=False, timeout_ms=_LEAVE_MILLIS)
