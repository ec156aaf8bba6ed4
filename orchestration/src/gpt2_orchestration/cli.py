"""The `gpt2` command: pipelines. `commands/` holds the others.

Exit status: 0 done, 1 a stage, job, service or check of `gpt2 doctor` failed, 2 the command line or a specification is
wrong, 130 interrupted. An error is one sentence on standard error: what happened, and what to do.
"""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gpt2_orchestration.commands import comparison  # noqa: F401 - adds its commands to `models`
from gpt2_orchestration.commands.configuration import ConfigOption, Configuration, client_settings, config
from gpt2_orchestration.commands.doctor import doctor
from gpt2_orchestration.commands.errors import DEBUG_VARIABLE, UsageError, complain, shows_errors
from gpt2_orchestration.commands.events import events
from gpt2_orchestration.commands.generate import generate
from gpt2_orchestration.commands.jobs import jobs
from gpt2_orchestration.commands.models import models
from gpt2_orchestration.commands.output import prepare_output
from gpt2_orchestration.commands.runs import runs
from gpt2_orchestration.commands.stack import FolderOption, FreePortsOption, stack
from gpt2_orchestration.commands.stages import export, tokenize, train
from gpt2_orchestration.commands.texts import check_arguments
from gpt2_orchestration.dashboard.settings import DashboardSettings
from gpt2_orchestration.pipelines.settings import PipelineSettings, ask_services
from gpt2_orchestration.proxies import exempt_loopback
from gpt2_orchestration.quiet import quiet_libraries
from gpt2_orchestration.specification import load_specification, parse_overrides
from gpt2_orchestration.stack.discovery import FOLDER_VARIABLE
from gpt2_orchestration.stack.settings import DEFAULT_PORTS

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="From text in a database to a GPT-2.")
app.add_typer(stack, name="stack")
app.add_typer(runs, name="runs")
app.add_typer(events, name="events")
app.add_typer(jobs, name="jobs")
app.add_typer(models, name="models")

SetOption = Annotated[
    list[str],
    typer.Option("--set", help="PATH=VALUE in place of the file's, such as train_model.config.steps=9. Repeatable."),
]


class Runner(StrEnum):
    """How a pipeline is run."""

    LOCAL = "local"
    BEAM = "beam"


@app.callback()
@shows_errors
def configure(
    context: typer.Context,
    file: ConfigOption = None,
    stack_folder: Annotated[
        Path | None, typer.Option("--stack", envvar=FOLDER_VARIABLE, help="Folder of the stack whose servers are used.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show where in the code an error comes from.")] = False,
) -> None:
    """Reads the configuration before any command does."""
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"
    exempt_loopback()
    context.obj = Configuration.read(file, os.environ, stack_folder)
    context.obj.apply()


@app.command()
@shows_errors
def demo(folder: FolderOption = Path(".gpt2/demo"), free_ports: FreePortsOption = False) -> None:
    """Take text from MongoDB to a registered model on this machine, with no servers to install."""
    from gpt2_orchestration.demo.demo import run_demo

    run_demo(folder, dict.fromkeys(DEFAULT_PORTS, 0) if free_ports else DEFAULT_PORTS)


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
    facts = ask_services(specified, client_settings())
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


@app.command()
@shows_errors
def dashboard(
    listen: Annotated[
        str, typer.Option(envvar="GPT2_DASHBOARD_LISTEN", help="HOST:PORT. Whoever reaches it may use its token.")
    ] = "127.0.0.1:8090",
) -> None:
    """Serve the dashboard of the services named by GPT2_<SERVICE>_ADDRESS until Ctrl-C. `gpt2 stack up` has its own."""
    # Imported here, as no other command serves anything.
    from gpt2_orchestration.dashboard.server import serve

    settings = DashboardSettings.from_environment({**os.environ, "GPT2_DASHBOARD_LISTEN": listen})
    print(f"the dashboard is at http://{listen}; Ctrl-C stops it", flush=True)
    serve(settings)


for command in (export, tokenize, train, generate, doctor, config):
    app.command()(command)


def main() -> None:
    """Entry point of the `gpt2` command."""
    prepare_output()
    try:
        check_arguments(sys.argv[1:], os.environ)
    except UsageError as error:
        sys.exit(complain(error, 2))
    app()
