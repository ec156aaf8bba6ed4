"""Runs of all services, newest first: a merge of the services' paginated lists with a few pages in memory.

A run has jobs in several services, each of which sorts it by its own first job. The merge sorts it by the earliest: a
service's part is skipped while another service has an earlier one.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gpt2.jobs.v1 import jobs_service_pb2
from gpt2_orchestration.client.runs import Run, creation_time
from gpt2_orchestration.client.service_client import NO_ANSWER, ServiceClient, ServiceError
from gpt2_orchestration.client.services import Services

_PAGE = 500
_MAX_KNOWN_RUNS = 5000
_MAX_LOOKED_UP = 500

_Summary = jobs_service_pb2.RunSummary
_Place = tuple[int, str]
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class RunList:
    """Runs, newest first."""

    runs: list[Run]
    next_token: str
    """Token of the next page, with older runs; empty on the last page."""
    errors: Mapping[str, ServiceError]
    """Errors of services that did not answer, by service."""


def newest_runs(services: Services, limit: int, after: str = "") -> RunList:
    """A page of runs, newest first.

    Args:
        services: The services to query.
        limit: Maximum number of runs.
        after: `next_token` of the previous page.

    Raises:
        ServiceError: No service answers, or the token is invalid.
    """
    merged = MergedRuns(services, after, page=limit + 1)
    found: list[Run] = []
    token = ""
    for run, its_token in merged:
        if len(found) == limit:
            return RunList(found, token, merged.errors)
        found.append(run)
        token = its_token
    return RunList(found, "", merged.errors)


def find_runs(services: Services, run_ids: Sequence[str]) -> RunList:
    """The runs with these ids, in the form of lists. Raises ServiceError when no service answers."""
    answers = services.ask(lambda client: client.runs_of(run_ids))
    parts: dict[str, list[_Summary]] = {}
    for summaries in answers.require_any().values():
        for summary in summaries:
            parts.setdefault(summary.run_id, []).append(summary)
    newest = sorted(parts.values(), key=lambda run: min(map(_place, run)), reverse=True)
    return RunList([_merge_parts(run) for run in newest], "", answers.errors)


class MergedRuns:
    """Iterates over runs, newest first, each with the token of the page after it.

    Args:
        services: The services to query.
        after: Token to start after; empty for the newest.
        page: Page size of requests to a service.
    """

    def __init__(self, services: Services, after: str = "", page: int = _PAGE) -> None:
        self.errors: dict[str, ServiceError] = {}
        """Errors of services that did not answer; their parts of later runs are missing."""
        self._services = services
        self._page = min(page, _PAGE)
        self._read: dict[str, deque[_Summary]] = {name: deque() for name in services.clients}
        self._tokens = dict.fromkeys(services.clients, after)
        """Page tokens of services that may have further pages."""
        self._known: dict[str, dict[str, _Summary | None]] = {}
        """Parts of pending runs by run and service; None where a service has no part."""

    def __iter__(self) -> Iterator[tuple[Run, str]]:
        while self._read_pages():
            taken = self._take()
            self._look_up([(service, part) for service, part in taken if not self._has_earlier(service, part)])
            for service, part in taken:
                if self._has_earlier(service, part):
                    continue
                parts = self._known.pop(part.run_id, {})
                yield _merge_parts([other for other in parts.values() if other is not None]), part.page_token

    def _read_pages(self) -> bool:
        """Fetches pages for services whose buffer is empty. Returns whether any run is left. Raises ServiceError."""
        wanted = {name: token for name, token in self._tokens.items() if not self._read[name]}
        if wanted:
            self._forget_oldest()
        pages = self._query(wanted, lambda client: client.runs_page((), self._page, wanted[client.service]))
        for name, (summaries, token) in pages.items():
            self._read[name].extend(summaries)
            for summary in summaries:
                self._note(name, summary.run_id, summary)
            if token:
                self._tokens[name] = token
            else:
                del self._tokens[name]
        return any(self._read.values())

    def _take(self) -> list[tuple[str, _Summary]]:
        """Takes parts, newest first, while every service has a buffered part."""
        taken = []
        while not any(not self._read[name] for name in self._tokens):
            heads = [(_place(read[0]), name) for name, read in self._read.items() if read]
            if not heads:
                break
            _, name = max(heads)
            taken.append((name, self._read[name].popleft()))
        return taken

    def _look_up(self, taken: Sequence[tuple[str, _Summary]]) -> None:
        """Fetches the parts of runs about to be returned that services list further back."""
        for start in range(0, len(taken), _MAX_LOOKED_UP):
            run_ids = {part.run_id for _, part in taken[start : start + _MAX_LOOKED_UP]}
            missing = {name: [run for run in run_ids if name not in self._known[run]] for name in self._read}
            wanted = {name: runs for name, runs in missing.items() if runs and name not in self.errors}
            found = self._query(wanted, lambda client: client.runs_of(wanted[client.service]))  # noqa: B023 - called at once
            for name, summaries in found.items():
                for run_id in wanted[name]:
                    self._note(name, run_id, None)
                for summary in summaries:
                    self._note(name, summary.run_id, summary)

    def _has_earlier(self, service: str, part: _Summary) -> bool:
        """Whether another service has an earlier part of the run; ties are broken by service."""
        self._note(service, part.run_id, part)
        place = (_place(part), service)
        others = self._known[part.run_id].items()
        return any(other is not None and (_place(other), name) < place for name, other in others)

    def _note(self, service: str, run_id: str, part: _Summary | None) -> None:
        self._known.setdefault(run_id, {})[service] = part

    def _forget_oldest(self) -> None:
        """Bounds memory: evicted parts are fetched again if needed."""
        while len(self._known) > _MAX_KNOWN_RUNS:
            del self._known[next(iter(self._known))]

    def _query(self, wanted: Mapping[str, object], call: Callable[[ServiceClient], Answer]) -> dict[str, Answer]:
        """Queries some of the services. Raises ServiceError when none is left, or one refuses."""
        if not wanted:
            return {}
        answers = self._services.ask(lambda client: [call(client)] if client.service in wanted else [])
        for name, error in answers.errors.items():
            if error.code not in NO_ANSWER:
                raise error
            self.errors[name] = error
            self._tokens.pop(name, None)
            self._read[name].clear()
        if len(self.errors) == len(self._read):
            raise next(iter(self.errors.values()))
        return {name: answer for name, found in answers.found.items() for answer in found}


def _place(part: _Summary) -> _Place:
    return (part.create_time.ToNanoseconds(), part.run_id)


def _merge_parts(parts: Sequence[_Summary]) -> Run:
    jobs = sorted((job for part in parts for job in part.jobs), key=creation_time)
    omitted = sum(part.job_count for part in parts) - len(jobs)
    start = min(parts, key=_place).create_time if omitted else None
    return Run(run_id=parts[0].run_id, jobs=jobs, omitted_jobs=omitted, omitted_from=start)
