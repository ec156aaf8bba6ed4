"""All services queried concurrently over open channels; some may be unavailable."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from gpt2.jobs.v1 import jobs_service_pb2
from gpt2_orchestration.client.addresses import DEFAULT_PORTS
from gpt2_orchestration.client.service_client import ClientSettings, ServiceClient, ServiceError, connect

_CALL_SECONDS = 10.0
"""Short, as a user waits."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Answers(Generic[Answer]):
    """Answers of the services."""

    found: Mapping[str, Answer]
    """Answers by service, without those in `errors`."""
    errors: Mapping[str, ServiceError]

    def require_any(self) -> Mapping[str, Answer]:
        """The answers. Raises the first ServiceError where no service answered."""
        if not self.found:
            raise next(iter(self.errors.values()))
        return self.found


class Services:
    """Clients of all services. Thread-safe.

    Args:
        clients: A client of each, by name.
        pool: Runs the calls.
    """

    def __init__(self, clients: Mapping[str, ServiceClient], pool: ThreadPoolExecutor) -> None:
        self.clients = clients
        self._pool = pool

    def ask(self, question: Callable[[ServiceClient], Answer]) -> Answers[Answer]:
        """Calls a function with every service's client, concurrently."""
        asked = {name: self._pool.submit(question, client) for name, client in self.clients.items()}
        found: dict[str, Answer] = {}
        errors: dict[str, ServiceError] = {}
        for name, future in asked.items():
            try:
                found[name] = future.result()
            except ServiceError as error:
                errors[name] = error
        return Answers(found, errors)


@contextmanager
def open_services(settings: ClientSettings, call_seconds: float = _CALL_SECONDS) -> Iterator[Services]:
    """Opens channels to all services, which connect on first use and reconnect when lost.

    Args:
        settings: Addresses and credentials.
        call_seconds: Deadline of unary calls.
    """
    with ExitStack() as opened:
        clients = {name: opened.enter_context(connect(name, settings, call_seconds)) for name in DEFAULT_PORTS}
        # The dashboard's page, event stream and writes call concurrently.
        pool = opened.enter_context(ThreadPoolExecutor(4 * len(clients), "ask"))
        yield Services(clients, pool)


def event_problem(events: jobs_service_pb2.EventState) -> str:
    """What is wrong with a service's events and what to do; empty when they arrive and no run waits."""
    found = []
    if events.problem:
        found.append(
            f"{events.problem}: the service retries; if this lasts, check Kafka's log, and "
            "GPT2_KAFKA_BOOTSTRAP_SERVERS and GPT2_KAFKA_TOPIC of the service"
        )
    if events.waiting_runs:
        runs = "1 run waits" if events.waiting_runs == 1 else f"{events.waiting_runs} runs wait"
        found.append(
            f"{runs} for the next stage, the oldest for {events.oldest_waiting_seconds:.0f} s: its event is "
            "republished automatically, or at once by `gpt2 runs continue RUN`; check that the stage's service runs"
        )
    return "; ".join(found)
