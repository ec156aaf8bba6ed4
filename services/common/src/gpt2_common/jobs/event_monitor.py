"""State of the event consumer and outbox of a service, for DescribeService and metrics."""

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError

from gpt2.jobs.v1 import jobs_service_pb2
from gpt2_common.events.consumer import EventConsumer
from gpt2_common.events.outbox import count_pending_events
from gpt2_common.jobs.handovers import WaitingRuns, count_waiting_runs
from gpt2_common.settings import ServiceSettings
from gpt2_contracts.events import source_of

_REBALANCE_SESSIONS = 4
"""A replaced consumer has waited for up to three sessions, and takes some time to rejoin its group."""
_WAITS = "its consumer waits for Kafka or for a stage to start"


class EventMonitor:
    """Monitors the consumer, the outbox and the waiting runs of a service.

    Args:
        engine: The service's database.
        service: Name of the service.
        settings: Its settings.
    """

    def __init__(self, engine: sql.Engine, service: str, settings: ServiceSettings) -> None:
        self._engine = engine
        self._service = service
        self._wait_seconds = settings.reconcile_seconds
        self._rebalance_seconds = _REBALANCE_SESSIONS * settings.kafka_session_seconds
        self._consumer: EventConsumer | None = None

    def watch(self, consumer: EventConsumer) -> None:
        """Sets the consumer; without one, the service is reported as healthy."""
        self._consumer = consumer

    def describe(self) -> jobs_service_pb2.EventState:
        """Returns the current state. Blocks on the database."""
        try:
            waiting, outbox_events = self.waiting_runs(), self.outbox_events()
        except DBAPIError as error:
            return jobs_service_pb2.EventState(problem=f"the database does not answer: {error.orig}")
        return jobs_service_pb2.EventState(
            problem=self._problem(),
            seconds_since_healthy=self.seconds_since_healthy(),
            outbox_events=outbox_events,
            waiting_runs=waiting.count,
            oldest_waiting_seconds=waiting.oldest_seconds,
        )

    def seconds_since_healthy(self) -> float:
        """Seconds since the consumer was last healthy; 0 without a consumer."""
        return 0.0 if self._consumer is None else self._consumer.health().seconds_since_healthy

    def outbox_events(self) -> int:
        """Number of unpublished events in the outbox."""
        return count_pending_events(self._engine, source_of(self._service))

    def waiting_runs(self) -> WaitingRuns:
        """Runs that wait for their next stage."""
        return count_waiting_runs(self._engine, self._service, self._wait_seconds)

    def _problem(self) -> str:
        if self._consumer is None:
            return ""
        health = self._consumer.health()
        if health.seconds_since_healthy < self._rebalance_seconds:
            return ""
        return f"no events have been received for {health.seconds_since_healthy:.0f} s: {health.problem or _WAITS}"
