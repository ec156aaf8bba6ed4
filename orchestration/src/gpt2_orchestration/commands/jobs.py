"""`gpt2 jobs`: the jobs of all services."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from enum import StrEnum
from typing import Annotated

import typer

from gpt2.jobs.v1 import job_pb2
from gpt2_orchestration.client.addresses import DEFAULT_PORTS
from gpt2_orchestration.client.jobs import describe
from gpt2_orchestration.client.progress import job_display
from gpt2_orchestration.client.service_client import ClientSettings, NotFoundError, ServiceClient, ServiceError, connect
from gpt2_orchestration.commands.command_groups import HelpGroup
from gpt2_orchestration.commands.configuration import client_settings
from gpt2_orchestration.commands.errors import shows_errors
from gpt2_orchestration.commands.output import JsonOption, as_json, print_json
from gpt2_orchestration.commands.tables import print_table

jobs = typer.Typer(cls=HelpGroup, no_args_is_help=True, help="Jobs of all services.")


class Service(StrEnum):
    """The services."""

    EXPORTER = "exporter"
    TOKENIZER = "tokenizer"
    TRAINER = "trainer"
    REGISTRY = "registry"


class State(StrEnum):
    """States of jobs."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ServiceOption = Annotated[Service | None, typer.Option(help="Only this service. Default: all.")]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.")]


@jobs.command("list")
@shows_errors
def list_all(
    service: ServiceOption = None,
    run: Annotated[str, typer.Option(help="Only jobs of this run.")] = "",
    state: Annotated[list[State], typer.Option(help="Only jobs in this state. Repeatable.")] = [],  # noqa: B006
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of jobs per service.")] = 100,
    json: JsonOption = False,
) -> None:
    """List jobs, newest first."""
    states = [job_pb2.Job.State.Value(f"STATE_{item.upper()}") for item in state]
    found: list[job_pb2.Job] = []
    for name in _names(service):
        with connect(name, _settings()) as client:
            found += client.jobs(run, states, limit)
    found.sort(key=lambda job: job.create_time.ToNanoseconds(), reverse=True)
    if json:
        print_json([as_json(job) for job in found])
        return
    rows = ((job.job_id, job.service, job.kind, describe(job), job.create_time.ToJsonString()) for job in found)
    print_table(("job", "service", "call", "state", "created"), rows)


@jobs.command()
@shows_errors
def show(job: JobArgument, service: ServiceOption = None, json: JsonOption = False) -> None:
    """Show a job: progress, outputs, error."""
    _with_job(job, service, lambda _client, found: print_json(as_json(found)) if json else _print_job(found))


@jobs.command()
@shows_errors
def watch(job: JobArgument, service: ServiceOption = None, json: JsonOption = False) -> None:
    """Follow a job to its end. Exit status 1 when it fails or is cancelled."""

    def follow(client: ServiceClient, found: job_pb2.Job) -> None:
        with ExitStack() as stack:
            show = (lambda now: print_json(as_json(now))) if json else stack.enter_context(job_display(found.kind)).show
            client.follow(found, show)

    _with_job(job, service, follow)


@jobs.command()
@shows_errors
def cancel(
    job: JobArgument,
    service: ServiceOption = None,
    reason: Annotated[str, typer.Option(help="Reason to record.")] = "",
    json: JsonOption = False,
) -> None:
    """Request cancellation of a job."""

    def stop(client: ServiceClient, found: job_pb2.Job) -> None:
        job = client.cancel(found.job_id, reason)
        if json:
            print_json(as_json(job))
        else:
            print(f"cancellation requested: {job.job_id}")

    _with_job(job, service, stop)


def _with_job(job_id: str, service: Service | None, act: Callable[[ServiceClient, job_pb2.Job], None]) -> None:
    """Finds the service that has a job, and calls `act` with its client. Raises ServiceError."""
    having = []
    for name in _names(service):
        with connect(name, _settings()) as client:
            try:
                having.append((name, client.get(job_id)))
            except NotFoundError:
                continue
    if not having:
        raise ServiceError(f"no service has a job {job_id}: `gpt2 jobs list` shows the jobs")
    if len(having) > 1:
        services = " and ".join(name for name, _ in having)
        raise ServiceError(f"{services} each have a job {job_id}: choose one with --service")
    name, found = having[0]
    with connect(name, _settings()) as client:
        act(client, found)


def _names(service: Service | None) -> Sequence[str]:
    return [service.value] if service else list(DEFAULT_PORTS)


def _settings() -> ClientSettings:
    return client_settings()


def _print_job(job: job_pb2.Job) -> None:
    facts = [
        ("service", job.service),
        ("call", job.kind),
        ("run", job.run_id),
        ("state", describe(job)),
        ("attempt", job.attempt),
        ("created", job.create_time.ToJsonString()),
        ("by", job.actor),
    ]
    if job.HasField("end_time"):
        facts.append(("ended", job.end_time.ToJsonString()))
    if job.HasField("error"):
        facts.append(("error", job.error.message))
    facts += [("warning", text) for text in job.warnings]
    facts += [(f"output {output.name}", output.uri) for output in job.outputs]
    print_table(("fact", "value"), facts, job.job_id)
