"""Prometheus metrics of a service, and the page that shows them."""

import threading
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from gpt2_common.settings import SettingsError


class ServiceMetrics:
    """The metrics of one service.

    | name | kind | meaning |
    |---|---|---|
    | gpt2_calls_total | counter | gRPC calls by method and code |
    | gpt2_call_seconds | histogram | time that calls took, by method |
    | gpt2_jobs_running | gauge | jobs at work |
    | gpt2_outbox_events | gauge | events that wait for Kafka |
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._calls = Counter("gpt2_calls", "gRPC calls.", ["method", "code"], registry=self._registry)
        self._seconds = Histogram("gpt2_call_seconds", "Time a call took.", ["method"], registry=self._registry)
        self._running = Gauge("gpt2_jobs_running", "Jobs at work.", registry=self._registry)
        self._waiting = Gauge("gpt2_outbox_events", "Events that wait for Kafka.", registry=self._registry)

    def count_call(self, method: str, code: str, seconds: float) -> None:
        """Notes a call that has ended."""
        self._calls.labels(method, code).inc()
        self._seconds.labels(method).observe(seconds)

    def watch(self, running_jobs: Callable[[], int], waiting_events: Callable[[], int]) -> None:
        """Says where the gauges are read from, whenever the page is asked for."""
        self._running.set_function(running_jobs)
        self._waiting.set_function(waiting_events)

    def serve(self, listen: str) -> "Callable[[], None]":
        """Serves the page on an address. Returns what stops it. Raises SettingsError when the address cannot be had."""
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
