"""Shows how far a job is: a bar in a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from gpt2.jobs.v1 import job_pb2
from gpt2_orchestration.job_states import state_name

_LINE_SECONDS = 5.0
_SHOWN = ("loss", "validation_loss")
"""Figures that are shown; TensorBoard shows all."""


class JobDisplay(Protocol):
    """Shows one job."""

    def show(self, job: job_pb2.Job) -> None:
        """Shows the job as it is now."""


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
            # To `update`, None says that the total stays; the phase before may have had one.
            next(task for task in self._progress.tasks if task.id == self._task).total = None
        self._progress.update(self._task, total=total, completed=done, facts=escape(describe(job)))
        for text in job.warnings[self._warned :]:
            self._progress.console.print(f"[bold yellow]{escape(warning_line(self._stage, text))}[/]")
        self._warned = len(job.warnings)


class LineDisplay:
    """A line for each change of state or phase, for each warning, and every few seconds between.

    Args:
        stage: Name at the start of each line.
        to_output: Whether the lines are what a command prints, rather than what it says meanwhile.
    """

    def __init__(self, stage: str, to_output: bool = False) -> None:
        self._stage = stage
        self._stream = sys.stdout if to_output else sys.stderr
        self._last: tuple[int, str] | None = None
        self._shown = 0.0
        self._warned = 0

    def show(self, job: job_pb2.Job) -> None:
        """Prints a line when there is something new to say."""
        for text in job.warnings[self._warned :]:
            print(warning_line(self._stage, text), file=self._stream, flush=True)
        self._warned = len(job.warnings)
        now = time.monotonic()
        state = (int(job.state), job.progress.phase)
        if state == self._last and now - self._shown < _LINE_SECONDS:
            return
        self._last, self._shown = state, now
        print(f"{self._stage:<16} {describe(job)}", file=self._stream, flush=True)


@contextmanager
def job_display(stage: str) -> Iterator[JobDisplay]:
    """Shows a job on standard error, as fits what that is."""
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


def describe(job: job_pb2.Job) -> str:
    """How far a job is, in one line: phase, amount, rate, time left, figures."""
    now = job.progress
    state = state_name(job.state)
    if job.state != job_pb2.Job.STATE_RUNNING:
        return state
    parts = [now.phase or state]
    if now.total:
        parts.append(f"{now.done:,.0f}/{now.total:,.0f} {now.unit}")
    elif now.done:
        parts.append(f"{now.done:,.0f} {now.unit}")
    if now.rate > 0:
        parts.append(f"{now.rate:,.1f}/s")
        if now.total > now.done:
            parts.append(f"{duration((now.total - now.done) / now.rate)} left")
    parts += [f"{name.replace('_', ' ')} {now.metrics[name]:.4g}" for name in _SHOWN if name in now.metrics]
    return "  ".join(parts)


def warning_line(stage: str, text: str) -> str:
    """One warning of a job, for people."""
    return f"{stage:<16} WARNING: {text}"


def duration(seconds: float) -> str:
    """A time span for people: `45s`, `3m20s`, `2h05m`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
