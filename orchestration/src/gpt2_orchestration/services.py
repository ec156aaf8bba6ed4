"""The four services asked side by side: over channels that stay open, with some of them away."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from gpt2_orchestration.calls import DEFAULT_PORTS
from gpt2_orchestration.client import ClientSettings, ServiceClient, ServiceError, connect

_CALL_SECONDS = 10.0
"""Somebody waits in front of it."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Answers(Generic[Answer]):
    """What the services said."""

    found: Mapping[str, Answer]
    """By the service's name; without those in `errors`."""
    errors: Mapping[str, ServiceError]

    def require_any(self) -> Mapping[str, Answer]:
        """What was found. Raises the first ServiceError where no service answered."""
        if not self.found:
            raise next(iter(self.errors.values()))
        return self.found


class Services:
    """The services. May be used by several threads.

    Args:
        clients: A client of each, by name.
        pool: Asks them side by side.
    """

    def __init__(self, clients: Mapping[str, ServiceClient], pool: ThreadPoolExecutor) -> None:
        self.clients = clients
        self._pool = pool

    def ask(self, question: Callable[[ServiceClient], Answer]) -> Answers[Answer]:
        """Asks every service the same."""
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
def open_services(settings: ClientSettings) -> Iterator[Services]:
    """Opens channels to the services; each connects when it is first used, and again when it was lost."""
    with ExitStack() as opened:
        clients = {name: opened.enter_context(connect(name, settings, _CALL_SECONDS)) for name in DEFAULT_PORTS}
        # Page, event stream and writes ask at the same time.
        pool = opened.enter_context(ThreadPoolExecutor(4 * len(clients), "ask"))
        yield Services(clients, pool)
