"""Shows the progress of jobs: a bar in a terminal, a line now and then in a file or pipe."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gpt2.jobs.v1 import job_pb2
from gpt2_orchestration.client.jobs import describe, warning_line

_LINE_SECONDS = 5.0


class JobDisplay(Protocol):
    """Shows one job."""

    def show(self, job: job_pb2.Job) -> None:
        """Shows the job as it is now."""


class LineDisplay:
    """A line for each change of state or phase, for each warning, and every few seconds between.

    Args:
        stage: Name at the start of each line.
        to_output: Whether the lines go to standard output rather than standard error.
    """

    def __init__(self, stage: str, to_output: bool = False) -> None:
        self._stage = stage
        self._stream = sys.stdout if to_output else sys.stderr
        self._last: tuple[int, str] | None = None
        self._shown = 0.0
        self._warned = 0

    def show(self, job: job_pb2.Job) -> None:
        """Prints a line when the state or phase has changed or the last line is old."""
        for text in job.warnings[self._warned :]:
            print(warning_line(self._stage, text), file=self._stream, flush=True)
        self._warned = len(job.warnings)
        now = time.monotonic()
        state = (int(job.state), job.progress.phase)
        if state == self._last and now - self._shown < _LINE_SECONDS:
            return
        self._last, self._shown = state, now
        print(f"{self._stage:<16} {describe(job)}", file=self._stream, flush=True)


class BarDisplay:
    """A bar that moves, with rate and time left.

    Args:
        stage: Name before the bar.
        progress: What draws it.
    """

    def __init__(self, stage: str, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task(escape(stage), total=None, facts="")
        self._stage = stage
        self._warned = 0

    def show(self, job: job_pb2.Job) -> None:
        """Moves the bar."""
        now = job.progress
        succeeded = job.state == job_pb2.Job.STATE_SUCCEEDED
        total = 1.0 if succeeded else (now.total or None)
        done = 1.0 if succeeded else now.done
        if total is None:
            # `update` takes None as no change; the previous phase may have had a total.
            next(task for task in self._progress.tasks if task.id == self._task).total = None
        self._progress.update(self._task, total=total, completed=done, facts=escape(describe(job)))
        for text in job.warnings[self._warned :]:
            self._progress.console.print(f"[bold yellow]{escape(warning_line(self._stage, text))}[/]")
        self._warned = len(job.warnings)


@contextmanager
def job_display(stage: str) -> Iterator[JobDisplay]:
    """Shows a job on standard error: a bar in a terminal, else lines."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield LineDisplay(stage)
        return
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[facts]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield BarDisplay(stage, progress)
