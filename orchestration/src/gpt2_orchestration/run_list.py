"""The newest runs, or all, put together from the jobs of all services, without reading more jobs than it takes."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from gpt2.jobs.v1 import job_pb2
from gpt2_orchestration.client import ServiceClient, ServiceError
from gpt2_orchestration.runs import Run, group_by_run
from gpt2_orchestration.services import Services

_PAGE = 200


@dataclass(frozen=True, slots=True)
class RunList:
    """Runs, newest first."""

    runs: list[Run]
    more: bool
    """Whether there are older ones."""
    errors: Mapping[str, ServiceError]
    """Services that were not heard, by name."""


@dataclass(slots=True)
class _Reading:
    """How far the jobs of one service were read."""

    jobs: list[job_pb2.Job] = field(default_factory=list)
    token: str = ""
    at_end: bool = False

    def horizon(self) -> int:
        """Nanoseconds since 1970; what is older was not read."""
        return 0 if self.at_end or not self.jobs else self.jobs[-1].create_time.ToNanoseconds()


def newest_runs(services: Services, limit: int | None = None) -> RunList:
    """Reads pages of jobs until the newest runs are known.

    A run counts as known when its oldest job is newer than all that was not read. (A run that was taken up again after
    so long that its first job lies further back is shown with the jobs that were read; `Run` of its own page has all.)

    Args:
        services: Whom to ask.
        limit: Most runs to return; None for all there are.

    Raises:
        ServiceError: No service answers.
    """
    readings = {name: _Reading() for name in services.clients}
    errors: dict[str, ServiceError] = {}
    while True:
        answers = services.ask(lambda client: _read_page(client, readings[client.service]))
        errors |= answers.errors
        if len(errors) == len(readings):
            raise next(iter(errors.values()))
        for name in answers.errors:
            readings[name].at_end = True
        at_end = all(reading.at_end for reading in readings.values())
        if limit is None and not at_end:
            continue
        known = _known_runs(readings.values())
        found = known[:limit]
        if at_end or len(found) == limit:
            return RunList(found, more=not at_end or len(known) > len(found), errors=errors)


def _known_runs(readings: Collection[_Reading]) -> list[Run]:
    runs = group_by_run(job for reading in readings for job in reading.jobs)
    horizon = max(reading.horizon() for reading in readings)
    return [run for run in runs if run.jobs[0].create_time.ToNanoseconds() > horizon]


def _read_page(client: ServiceClient, reading: _Reading) -> None:
    if reading.at_end:
        return
    jobs, reading.token = client.jobs_page("", (), _PAGE, reading.token)
    reading.jobs += jobs
    reading.at_end = not reading.token
