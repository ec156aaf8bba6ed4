"""An attempt of a job, wherever it runs: what the runner of jobs asks of it."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from gpt2_common.jobs.definition import JobKind
from gpt2_common.jobs.messages import Report
from gpt2_common.jobs.outcome import Outcome
from gpt2_common.jobs.rows import StoredJob


class Attempt(Protocol):
    """One attempt. `run` is called once; the others at any time, also before it."""

    async def run(self, grace_seconds: float) -> Outcome:
        """Runs the attempt to its end; work that is asked to stop is killed after `grace_seconds`."""

    async def cancel(self) -> None:
        """Asks the work to stop for good."""

    async def suspend(self) -> None:
        """Asks the work to stop, as the service does: `run` is to return soon, and another attempt resumes it."""

    async def heartbeat(self) -> None:
        """Confirms that the job is still this replica's."""

    def abandon(self) -> None:
        """Ends the attempt, as another replica has the job now."""


ReportSink = Callable[[Report], Awaitable[None]]
"""Takes progress and warnings of an attempt."""

Launcher = Callable[[JobKind, StoredJob, ReportSink], Attempt]
"""Makes the attempt of a job that is about to run."""
