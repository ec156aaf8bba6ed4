"""`gpt2 stack`: starts, shows and stops the embedded stack."""

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from gpt2_orchestration.commands.configuration import current_configuration
from gpt2_orchestration.commands.errors import shows_errors
from gpt2_orchestration.commands.output import print_table
from gpt2_orchestration.progress import duration
from gpt2_orchestration.stack.addresses import StackAddresses
from gpt2_orchestration.stack.control import stack_status
from gpt2_orchestration.stack.discovery import USUAL_FOLDER, SeveralStacks, findable
from gpt2_orchestration.stack.kafka_server import require_kafka
from gpt2_orchestration.stack.process import ProcessState
from gpt2_orchestration.stack.record import ProcessRecord
from gpt2_orchestration.stack.running import run_until_stopped
from gpt2_orchestration.stack.settings import DEFAULT_PORTS, EVENT_TOPIC, StackSettings
from gpt2_orchestration.stack.stopping import DEFAULT_GRACE_SECONDS, Waiting, stop_stack

stack = typer.Typer(no_args_is_help=True, help="The embedded stack: every server, as local processes.")

FreePortsOption = Annotated[
    bool,
    typer.Option("--free-ports", envvar="GPT2_STACK_FREE_PORTS", help="Take free ports; leave the usual ones alone."),
]
FolderOption = Annotated[Path, typer.Option(help="Folder that holds all that the stack keeps.")]

FoundFolderOption = Annotated[
    Path | None, typer.Option(help="Folder of the stack. Default: that of the stack that runs in this checkout.")
]

_LINE_SECONDS = 5.0


@stack.command()
@shows_errors
def up(
    folder: FolderOption = Path(".gpt2"),
    kafka: Annotated[bool, typer.Option("--kafka", help="Run Apache Kafka itself; needs Java 17 and Maven.")] = False,
    free_ports: FreePortsOption = False,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds that each process has to stop before it is killed.")
    ] = StackSettings.stop_grace_seconds,
) -> None:
    """Start the stack and keep it until Ctrl-C or `gpt2 stack down`."""
    if kafka:
        require_kafka()
    title = "Kafka" if kafka else "Kafka (stand-in, keeps nothing on disk)"
    settings = StackSettings(
        folder=folder,
        ports=dict.fromkeys(DEFAULT_PORTS, 0) if free_ports else DEFAULT_PORTS,
        kafka=kafka,
        kafka_topic=os.environ.get("GPT2_KAFKA_TOPIC") or EVENT_TOPIC,
        stop_grace_seconds=grace,
    )
    with findable(folder, Path.cwd()):
        run_until_stopped(settings, on_change=_StopDisplay().show, on_ready=partial(_show_addresses, title))


@stack.command()
@shows_errors
def down(
    folder: FoundFolderOption = None,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds that the stack has to stop before what is left of it is killed.")
    ] = DEFAULT_GRACE_SECONDS,
) -> None:
    """Stop the stack that runs here, or in a folder, and return when all of it is gone."""
    folder = _folder(folder)
    outcome = stop_stack(folder, grace, _WaitDisplay().show)
    what = "stopped" if outcome.had_supervisor else "its supervisor was gone; what it had left is stopped"
    killed = f"; killed, as they did not stop in time: {', '.join(outcome.killed)}" if outcome.killed else ""
    print(f"stack in {folder.absolute()}: {what}{killed}")


@stack.command()
@shows_errors
def status(folder: FoundFolderOption = None) -> None:
    """Show the processes of the stack that runs here, or in a folder."""
    folder = _folder(folder)
    rows = []
    for process in stack_status(folder):
        memory = f"{process.resident_bytes / 2**20:.0f} MiB"
        uptime = duration(process.uptime_seconds)
        facts = (process.name, process.state, process.pid, process.address, memory, uptime, process.restarts)
        rows.append((*facts, process.note))
    print(f"stack in {folder.absolute()}")
    print_table(("process", "state", "pid", "address", "memory", "up", "restarts", "note"), rows)


def _folder(chosen: Path | None) -> Path:
    """Folder of the stack that is meant. Raises StackError when there is no telling."""
    configuration = current_configuration()
    if chosen is not None:
        return chosen
    if configuration.problem:
        raise SeveralStacks(configuration.problem)
    if configuration.notice:
        print(f"gpt2: {configuration.notice}", file=sys.stderr)
    return configuration.stack_folder or Path(USUAL_FOLDER)


class _StopDisplay:
    """Says on standard error that a stack in the foreground stops, and what was killed."""

    def __init__(self) -> None:
        self._stopping = False

    def show(self, record: ProcessRecord) -> None:
        """Hears of a change of a process."""
        if record.state == ProcessState.STOPPING and not self._stopping:
            self._stopping = True
            print("stopping the stack; Ctrl-C kills what is left of it", file=sys.stderr, flush=True)
        elif record.state == ProcessState.KILLED:
            print(f"{record.name} did not stop in time and was killed", file=sys.stderr, flush=True)


class _WaitDisplay:
    """Says on standard error every few seconds what a stop waits for."""

    def __init__(self) -> None:
        self._shown = time.monotonic()

    def show(self, waiting: Waiting) -> None:
        """Hears what is waited for."""
        if time.monotonic() - self._shown < _LINE_SECONDS:
            return
        self._shown = time.monotonic()
        left = waiting.grace_seconds - waiting.seconds
        then = f"they are killed in {duration(left)}" if left > 0 else "they are killed"
        print(f"waiting for {', '.join(waiting.processes)} to end; {then}", file=sys.stderr, flush=True)


def _show_addresses(kafka: str, addresses: StackAddresses) -> None:
    rows = (
        ("MongoDB (stand-in, refuses views, transactions)", addresses.mongodb_uri),
        (kafka, addresses.kafka_bootstrap_servers),
        ("MLflow", addresses.mlflow_uri),
        ("TensorBoard", addresses.tensorboard_uri),
        ("exporter", addresses.exporter),
        ("tokenizer", addresses.tokenizer),
        ("trainer", addresses.trainer),
        ("registry", addresses.registry),
        ("dashboard", addresses.dashboard_uri),
        ("artifacts", addresses.artifact_root),
    )
    print_table(("server", "address"), rows, "the stack is up; Ctrl-C stops it")
