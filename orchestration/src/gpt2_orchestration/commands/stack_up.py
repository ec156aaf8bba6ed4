"""`gpt2 stack up`: the embedded stack, in the foreground."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from gpt2_contracts.events import DEFAULT_TOPIC
from gpt2_orchestration.commands.errors import shows_errors
from gpt2_orchestration.commands.tables import print_table
from gpt2_orchestration.stack.addresses import StackAddresses
from gpt2_orchestration.stack.discovery import findable
from gpt2_orchestration.stack.kafka_server import require_kafka
from gpt2_orchestration.stack.record import ProcessRecord, ProcessState
from gpt2_orchestration.stack.running import run_until_stopped
from gpt2_orchestration.stack.settings import DEFAULT_PORTS, StackSettings

FreePortsOption = Annotated[
    bool,
    typer.Option("--free-ports", envvar="GPT2_STACK_FREE_PORTS", help="Use free ports instead of the default ones."),
]
FolderOption = Annotated[Path, typer.Option(help="Folder of the stack's data.")]


@shows_errors
def up(
    folder: FolderOption = Path(".gpt2"),
    kafka: Annotated[
        bool, typer.Option("--kafka", help="Run Apache Kafka rather than the stand-in; needs Java 17 and Maven.")
    ] = False,
    free_ports: FreePortsOption = False,
    grace: Annotated[
        float, typer.Option(min=0, help="Grace period in seconds before a process is killed.")
    ] = StackSettings.stop_grace_seconds,
) -> None:
    """Start the stack and run it until Ctrl-C or `gpt2 stack down`."""
    if kafka:
        require_kafka()
    title = "Kafka" if kafka else "Kafka (stand-in, keeps nothing on disk)"
    settings = StackSettings(
        folder=folder,
        ports=dict.fromkeys(DEFAULT_PORTS, 0) if free_ports else DEFAULT_PORTS,
        kafka=kafka,
        kafka_topic=os.environ.get("GPT2_KAFKA_TOPIC") or DEFAULT_TOPIC,
        stop_grace_seconds=grace,
    )
    with findable(folder, Path.cwd()):
        run_until_stopped(settings, on_change=_StopDisplay().show, on_ready=partial(_show_addresses, title))


class _StopDisplay:
    """Prints on standard error that the stack stops, and which processes were killed."""

    def __init__(self) -> None:
        self._stopping = False

    def show(self, record: ProcessRecord) -> None:
        """Receives a process that has changed."""
        if record.state == ProcessState.STOPPING and not self._stopping:
            self._stopping = True
            print("stopping the stack; Ctrl-C kills what is left of it", file=sys.stderr, flush=True)
        elif record.state == ProcessState.KILLED:
            print(f"{record.name} did not stop in time and was killed", file=sys.stderr, flush=True)


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
