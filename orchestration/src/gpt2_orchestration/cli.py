"""The `gpt2` command.

Exit status: 0 done, 1 a stage or service failed, 2 the command line or a specification is wrong, 130 interrupted.
"""

import os
import sys
from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec

import typer
from rich.console import Console
from rich.table import Table

from gpt2_orchestration.client import ClientSettings, ServiceError
from gpt2_orchestration.pipelines.settings import PipelineSettings, ask_services
from gpt2_orchestration.progress import duration
from gpt2_orchestration.quiet import quiet_libraries
from gpt2_orchestration.specification import SpecificationError, load_specification, parse_overrides
from gpt2_orchestration.stack.addresses import StackAddresses
from gpt2_orchestration.stack.control import stack_status, stop_stack
from gpt2_orchestration.stack.errors import StackError
from gpt2_orchestration.stack.running import run_until_stopped
from gpt2_orchestration.stack.settings import StackSettings

Arguments = ParamSpec("Arguments")

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="From text in a database to a GPT-2.")
stack = typer.Typer(no_args_is_help=True, help="The embedded stack: every server, as local processes.")
app.add_typer(stack, name="stack")

SetOption = Annotated[
    list[str],
    typer.Option("--set", help="PATH=VALUE in place of the file's, such as train_model.config.steps=9. Repeatable."),
]
FolderOption = Annotated[Path, typer.Option(help="Folder that holds all that the stack keeps.")]


class Runner(StrEnum):
    """How a pipeline is run."""

    LOCAL = "local"
    BEAM = "beam"


def shows_errors(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Turns the errors that users can do something about into one line and an exit status."""

    @wraps(command)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except SpecificationError as error:
            raise typer.Exit(_complain(error, 2)) from None
        except (ServiceError, StackError) as error:
            raise typer.Exit(_complain(error, 1)) from None
        except KeyboardInterrupt:
            raise typer.Exit(_complain("interrupted", 130)) from None

    return run


def _complain(error: object, status: int) -> int:
    print(f"gpt2: {error}", file=sys.stderr)
    return status


@app.command()
@shows_errors
def demo(folder: FolderOption = Path(".gpt2/demo")) -> None:
    """Take text from MongoDB to a registered model on this machine, with no servers to install."""
    from gpt2_orchestration.demo.demo import run_demo

    run_demo(folder)


@app.command()
@shows_errors
def run(
    specification: Annotated[Path, typer.Argument(help="YAML file that says what the pipeline does.")],
    runner: Annotated[Runner, typer.Option(help="How to run it.")] = Runner.LOCAL,
    folder: Annotated[Path, typer.Option(help="Folder of the pipeline's metadata and logs.")] = Path(".gpt2/runs"),
    cache: Annotated[bool, typer.Option(help="Take what has not changed from an earlier run.")] = True,
    assignments: SetOption = [],  # noqa: B006 - typer's way to say that there may be none
    beam_options: Annotated[
        list[str],
        typer.Option("--beam-option", help="Option of Apache Beam, such as --runner=FlinkRunner. Repeatable."),
    ] = [],  # noqa: B006
) -> None:
    """Run a pipeline over the services named by GPT2_<SERVICE>_ADDRESS."""
    specified = load_specification(specification, parse_overrides(assignments))
    facts = ask_services(specified, ClientSettings.from_environment(os.environ))
    settings = PipelineSettings(
        root=folder / specified.name,
        metadata=folder / "metadata.db",
        enable_cache=cache,
        beam_options=tuple(beam_options),
    )
    with quiet_libraries(folder / "tfx.log"):
        # TFX takes seconds to import, which what is wrong above need not wait for.
        from gpt2_orchestration.runners import run_pipeline

        run_pipeline(runner.value, specified, facts, settings)


@app.command()
@shows_errors
def compile(
    specification: Annotated[Path, typer.Argument(help="YAML file that says what the pipeline does.")],
    output: Annotated[Path, typer.Argument(help="YAML file to write, for Kubeflow Pipelines 2.")],
    image: Annotated[str, typer.Option(help="Image that has gpt2-orchestration; its tasks call the services.")],
    address: Annotated[
        list[str], typer.Option(help="SERVICE=HOST:PORT, where a service is in the cluster. Repeatable.")
    ] = [],  # noqa: B006
    token_secret: Annotated[str, typer.Option(help="Kubernetes secret whose key `token` is the bearer token.")] = "",
    assignments: SetOption = [],  # noqa: B006
) -> None:
    """Compile a pipeline for Kubeflow Pipelines 2."""
    from gpt2_orchestration.kubeflow.compiling import KubeflowSettings, compile_pipeline, parse_addresses

    specified = load_specification(specification, parse_overrides(assignments))
    settings = KubeflowSettings(image=image, addresses=parse_addresses(address), token_secret=token_secret)
    with quiet_libraries(output.with_suffix(".log")):
        compile_pipeline(specified, settings, output)


@stack.command()
@shows_errors
def up(folder: FolderOption = Path(".gpt2")) -> None:
    """Start the stack and keep it until Ctrl-C or `gpt2 stack down`."""
    run_until_stopped(StackSettings(folder=folder), on_ready=_show_addresses)


@stack.command()
@shows_errors
def down(folder: FolderOption = Path(".gpt2")) -> None:
    """Stop the stack that runs in a folder."""
    stop_stack(folder)


@stack.command()
@shows_errors
def status(folder: FolderOption = Path(".gpt2")) -> None:
    """Show the processes of the stack that runs in a folder."""
    table = Table("process", "state", "pid", "address", "memory", "up", "restarts", "note")
    for process in stack_status(folder):
        memory = f"{process.resident_bytes / 2**20:.0f} MiB"
        uptime = duration(process.uptime_seconds)
        facts = (process.name, process.state, process.pid, process.address, memory, uptime, process.restarts)
        table.add_row(*map(str, facts), process.note)
    Console().print(table)


def _show_addresses(addresses: StackAddresses) -> None:
    table = Table("server", "address", title="the stack is up; Ctrl-C stops it")
    for server, address in (
        ("MongoDB", addresses.mongodb_uri),
        ("Kafka (stand-in, keeps nothing on disk)", addresses.kafka_bootstrap_servers),
        ("MLflow", addresses.mlflow_uri),
        ("TensorBoard", addresses.tensorboard_uri),
        ("exporter", addresses.exporter),
        ("tokenizer", addresses.tokenizer),
        ("trainer", addresses.trainer),
        ("registry", addresses.registry),
        ("artifacts", str(addresses.artifact_root)),
    ):
        table.add_row(server, address)
    Console().print(table)


def main() -> None:
    """Entry point of the `gpt2` command."""
    app()
