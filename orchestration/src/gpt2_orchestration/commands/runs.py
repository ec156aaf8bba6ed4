"""`gpt2 runs`: runs, with their jobs in all services."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.live import Live

from gpt2.jobs.v1 import job_pb2
from gpt2_orchestration.client.jobs import describe, error_text, warning_line
from gpt2_orchestration.client.progress import LineDisplay
from gpt2_orchestration.client.run_pagination import MergedRuns
from gpt2_orchestration.client.runs import Run, cancel_run, continue_run, follow_run, show_run
from gpt2_orchestration.client.service_client import ClientSettings
from gpt2_orchestration.client.services import Services, open_services
from gpt2_orchestration.commands.command_groups import HelpGroup
from gpt2_orchestration.commands.configuration import client_settings
from gpt2_orchestration.commands.errors import UsageError, shows_errors
from gpt2_orchestration.commands.output import JsonOption, as_json, print_json, print_json_array
from gpt2_orchestration.commands.tables import make_table, print_long_table, print_table

runs = typer.Typer(cls=HelpGroup, no_args_is_help=True, help="Runs of plans and of pipelines.")

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")]
CorrectOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        help="STAGE.FIELD=VALUE to correct first, such as register_model.label=staging; null clears it. Repeatable.",
    ),
]
_DEFAULT_RUNS = 20
_PAGE = 500
_TIMES: Sequence[Literal["create_time", "start_time", "end_time"]] = ("create_time", "start_time", "end_time")
_COLUMNS = ("job", "service", "state", "attempt", "error")


@runs.command("list")
@shows_errors
def list_all(
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of runs. Default: 20.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="List all runs.")] = False,
    json: JsonOption = False,
) -> None:
    """List runs, newest first, with summaries of their jobs; `show` shows a run completely."""
    if everything and limit is not None:
        raise UsageError("--limit: cannot be combined with --all; give one of them")
    with open_services(_client()) as services:
        found = _newest(services, None if everything else limit or _DEFAULT_RUNS)
        if json:
            print_json_array(_run_summary(run) for run in found)
            return
        counted = ((run, len(run.jobs) + run.omitted_jobs) for run in found)
        rows = ((run.run_id, run.known_state, count, ", ".join(run.remaining_stages)) for run, count in counted)
        print_long_table(("run", "state", "jobs", "next"), rows)


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
    reason: Annotated[str, typer.Option(help="Reason to record.")] = "",
    json: JsonOption = False,
) -> None:
    """Cancel a run: its running job and all later stages."""
    _print_jobs("cancellation requested:", cancel_run(_client(), run, reason), json)


@runs.command("continue")
@shows_errors
def resume(run: RunArgument, assignments: CorrectOption = [], json: JsonOption = False) -> None:  # noqa: B006
    """Resume a run that failed or was cancelled, or that waits for a lost event.

    With --set, requests of stages that have not succeeded are corrected first: all of them or none.
    """
    # YAML and the request rules take longer to import than a list takes to print.
    from gpt2_orchestration.client.corrections import continue_corrected, read_corrections

    corrections = read_corrections(assignments)
    settings = _client()
    answers = continue_corrected(settings, run, corrections) if corrections else continue_run(settings, run)
    if json:
        print_json([as_json(job) for job in (*answers.jobs, *answers.published)])
        return
    for job in answers.published:
        print(f"republished the event of {job.job_id}")
    if answers.jobs or not answers.published:
        _print_jobs("resumed:", list(answers.jobs), json)


@contextmanager
def _display() -> Iterator[Callable[[Run], None]]:
    """Shows a run on standard output: a live table in a terminal, else a line for each change."""
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
        print("nothing to do: `gpt2 runs show RUN` shows the run's state")


def _rows(run: Run) -> Iterator[tuple[object, ...]]:
    return ((job.job_id, job.service, describe(job), job.attempt, error_text(job)) for job in run.jobs)


def _title(run: Run) -> str:
    remaining_stages = f", next: {', '.join(run.remaining_stages)}" if run.remaining_stages else ""
    return f"{run.run_id}: {run.known_state}{remaining_stages}"


def _newest(services: Services, limit: int | None) -> Iterator[Run]:
    """The newest runs, or all. Raises ServiceError, also when one service is unavailable."""
    merged = MergedRuns(services, page=_PAGE if limit is None else min(limit, _PAGE))
    for run, _ in islice(merged, None if limit is None else min(limit, sys.maxsize)):
        _require_all(merged)
        yield run
    _require_all(merged)


def _require_all(merged: MergedRuns) -> None:
    """Raises ServiceError where a service's jobs are missing, as states of runs would be wrong."""
    if merged.errors:
        raise next(iter(merged.errors.values()))


def _run_summary(run: Run) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "state": run.state,
        "remaining_stages": list(run.remaining_stages),
        "jobs": [_job_summary(job) for job in run.jobs],
        "omitted_jobs": run.omitted_jobs,
    }


def _job_summary(job: job_pb2.Job) -> dict[str, Any]:
    """The fields of a job in lists, as `as_json` has them but ten times as fast."""
    return {
        "job_id": job.job_id,
        "service": job.service,
        "kind": job.kind,
        "state": job_pb2.Job.State.Name(job.state),
        "attempt": job.attempt,
        **{name: getattr(job, name).ToJsonString() for name in _TIMES if job.HasField(name)},
        **({"error": {"code": job.error.code, "message": job.error.message}} if job.HasField("error") else {}),
        "cancel_requested": job.cancel_requested,
        "warnings": list(job.warnings),
    }


def _run_as_json(run: Run) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "state": run.state,
        "remaining_stages": list(run.remaining_stages),
        "jobs": [as_json(job) for job in run.jobs],
    }


def _client() -> ClientSettings:
    return client_settings()
