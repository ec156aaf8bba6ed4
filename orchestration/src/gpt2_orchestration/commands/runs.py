"""`gpt2 runs`: the jobs of a run, in whichever services they are."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from gpt2.jobs.v1 import job_pb2
from gpt2_orchestration.client import ClientSettings
from gpt2_orchestration.commands.configuration import client_settings
from gpt2_orchestration.commands.errors import shows_errors
from gpt2_orchestration.commands.output import JsonOption, as_json, make_table, print_json, print_table
from gpt2_orchestration.progress import LineDisplay, describe, warning_line
from gpt2_orchestration.run_list import newest_runs
from gpt2_orchestration.runs import Run, cancel_run, continue_run, follow_run, show_run
from gpt2_orchestration.services import open_services

runs = typer.Typer(no_args_is_help=True, help="Runs, whoever drives them: by a plan and events, or by a pipeline.")

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")]
_COLUMNS = ("job", "service", "state", "attempt", "error")


@runs.command("list")
@shows_errors
def list_all(
    limit: Annotated[int | None, typer.Option(min=1, help="Most runs, the newest. Default: all.")] = None,
    json: JsonOption = False,
) -> None:
    """List the runs that the services know of, newest first."""
    with open_services(_client()) as services:
        found = newest_runs(services, limit)
    if found.errors:
        # Without all of its jobs, a run would look as if it waited, or had never been.
        raise next(iter(found.errors.values()))
    if json:
        print_json([_run_as_json(run) for run in found.runs])
        return
    rows = ((run.run_id, run.state, len(run.jobs), ", ".join(run.to_come)) for run in found.runs)
    print_table(("run", "state", "jobs", "to come"), rows)


@runs.command()
@shows_errors
def show(run: RunArgument, json: JsonOption = False) -> None:
    """Show the jobs of a run."""
    shown = show_run(_client(), run)
    if json:
        print_json(_run_as_json(shown))
    else:
        print_table(_COLUMNS, _rows(shown), _title(shown))
        for job in shown.jobs:
            for text in job.warnings:
                print(warning_line(job.job_id, text))


@runs.command()
@shows_errors
def watch(run: RunArgument, json: JsonOption = False) -> None:
    """Follow a run to its end. Exit status 1 when it fails or is cancelled."""
    if json:
        follow_run(_client(), run, lambda now: print_json(_run_as_json(now)))
        return
    with _display() as show_now:
        follow_run(_client(), run, show_now)


@runs.command()
@shows_errors
def cancel(
    run: RunArgument,
    reason: Annotated[str, typer.Option(help="Why, for those who read it later.")] = "",
    json: JsonOption = False,
) -> None:
    """Stop a run, and let no further stage of it start."""
    _print_jobs("told", cancel_run(_client(), run, reason), json)


@runs.command("continue")
@shows_errors
def go_on(run: RunArgument, json: JsonOption = False) -> None:
    """Take a run up again where it failed or was cancelled."""
    _print_jobs("goes on:", continue_run(_client(), run), json)


@contextmanager
def _display() -> Iterator[Callable[[Run], None]]:
    """Shows a run as fits standard output: a table that changes in a terminal, else a line for each change."""
    console = Console()
    if not console.is_terminal:
        yield _Lines().show
        return
    with Live(console=console, auto_refresh=False) as live:
        shown: set[tuple[str, str]] = set()

        def show(run: Run) -> None:
            live.update(make_table(_COLUMNS, _rows(run), _title(run)), refresh=True)
            for warning in [(job.job_id, text) for job in run.jobs for text in job.warnings]:
                if warning not in shown:
                    shown.add(warning)
                    console.print(warning_line(*warning), markup=False)

        yield show


class _Lines:
    """A line for each change of a job."""

    def __init__(self) -> None:
        self._displays: dict[str, LineDisplay] = {}

    def show(self, run: Run) -> None:
        for job in run.jobs:
            self._displays.setdefault(job.job_id, LineDisplay(job.job_id, to_output=True)).show(job)


def _print_jobs(what: str, jobs: list[job_pb2.Job], json: bool) -> None:
    if json:
        print_json([as_json(job) for job in jobs])
        return
    for job in jobs:
        print(f"{what} {job.job_id}")
    if not jobs:
        print("there was nothing to do: `gpt2 runs show RUN` says how the run stands")


def _rows(run: Run) -> Iterator[tuple[object, ...]]:
    return ((job.job_id, job.service, describe(job), job.attempt, job.error.message) for job in run.jobs)


def _title(run: Run) -> str:
    to_come = f", to come: {', '.join(run.to_come)}" if run.to_come else ""
    return f"{run.run_id}: {run.state}{to_come}"


def _run_as_json(run: Run) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "state": run.state,
        "to_come": list(run.to_come),
        "jobs": [as_json(job) for job in run.jobs],
    }


def _client() -> ClientSettings:
    return client_settings()
