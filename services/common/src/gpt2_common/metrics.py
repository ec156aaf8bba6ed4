"""Prometheus metrics of a service, and the page that shows them."""

import threading
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from gpt2_common.jobs.event_monitor import EventMonitor
from gpt2_common.settings import SettingsError


class ServiceMetrics:
    """The metrics of one service.

    | name | kind | meaning |
    |---|---|---|
    | gpt2_calls_total | counter | gRPC calls by method and code |
    | gpt2_call_seconds | histogram | time that calls took, by method |
    | gpt2_jobs_running | gauge | jobs that run |
    | gpt2_outbox_events | gauge | events that wait for Kafka |
    | gpt2_consumer_unhealthy_seconds | gauge | time since events were received, or would have been |
    | gpt2_waiting_runs | gauge | runs whose next stage is not known to have been started |
    | gpt2_waiting_runs_oldest_seconds | gauge | time for which the first of them has waited |
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._calls = Counter("gpt2_calls", "gRPC calls.", ["method", "code"], registry=self._registry)
        self._seconds = Histogram("gpt2_call_seconds", "Time a call took.", ["method"], registry=self._registry)
        self._running = Gauge("gpt2_jobs_running", "Jobs that run.", registry=self._registry)
        self._outbox = Gauge("gpt2_outbox_events", "Events that wait for Kafka.", registry=self._registry)
        self._unhealthy = Gauge(
            "gpt2_consumer_unhealthy_seconds",
            "Time since events were received, or would have been if there had been any.",
            registry=self._registry,
        )
        self._waiting = Gauge(
            "gpt2_waiting_runs",
            "Runs whose next stage is not known to have been started some time after the last one ended.",
            registry=self._registry,
        )
        self._oldest = Gauge(
            "gpt2_waiting_runs_oldest_seconds",
            "Time for which the first of the runs that wait has waited.",
            registry=self._registry,
        )

    def count_call(self, method: str, code: str, seconds: float) -> None:
        """Counts a call that has ended."""
        self._calls.labels(method, code).inc()
        self._seconds.labels(method).observe(seconds)

    def watch(self, running_jobs: Callable[[], int], events: EventMonitor) -> None:
        """Sets where the gauges are read from, whenever the page is requested."""
        self._running.set_function(running_jobs)
        self._outbox.set_function(events.outbox_events)
        self._unhealthy.set_function(events.seconds_since_healthy)
        self._waiting.set_function(lambda: events.waiting_runs().count)
        self._oldest.set_function(lambda: events.waiting_runs().oldest_seconds)

    def serve(self, listen: str) -> "Callable[[], None]":
        """Serves the page. Returns what stops it. Raises SettingsError when the address cannot be used."""
        host, _, port = listen.rpartition(":")
        try:
            server, thread = start_http_server(int(port), host or "127.0.0.1", registry=self._registry)
        except (OSError, ValueError) as error:
            raise SettingsError(f"GPT2_METRICS_LISTEN: {listen} cannot be used ({error}): choose another") from error
        return lambda: _stop(server, thread)


def _stop(server: Any, thread: threading.Thread) -> None:
    server.shutdown()
    server.server_close()
    thread.join()
