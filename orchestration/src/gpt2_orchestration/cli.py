"""The `gpt2` command: its global options and the table of its commands, which are in `commands/`.

Exit status: 0 success, 1 a stage, job, service or check of `gpt2 doctor` failed, 2 invalid command line or
specification, 130 interrupted. Commands are imported when they run, so that help and completion answer at once.
"""

import gc
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from gpt2_orchestration.commands.command_groups import LazyCommand, LazyGroup
from gpt2_orchestration.commands.errors import DEBUG_VARIABLE, UsageError, print_error, shows_errors
from gpt2_orchestration.commands.text_io import check_arguments, prepare_output
from gpt2_orchestration.stack import FOLDER_VARIABLE

FILE_VARIABLE = "GPT2_CONFIG"

_COMMANDS = "gpt2_orchestration.commands"
_HELP_WIDTH = 120
"""Columns that help takes at most in a wide terminal."""


class Commands(LazyGroup):
    """All commands."""

    entries = (
        LazyCommand(
            "demo",
            f"{_COMMANDS}.demo:demo",
            "Take text from MongoDB to a registered model on this machine, with no servers to install.",
        ),
        LazyCommand(
            "run", f"{_COMMANDS}.pipelines:run", "Run a pipeline over the services named by GPT2_<SERVICE>_ADDRESS."
        ),
        LazyCommand("compile", f"{_COMMANDS}.pipelines:compile", "Compile a pipeline for Kubeflow Pipelines 2."),
        LazyCommand(
            "dashboard",
            f"{_COMMANDS}.dashboard:dashboard",
            "Serve the dashboard of the services named by GPT2_<SERVICE>_ADDRESS until Ctrl-C.",
        ),
        LazyCommand("export", f"{_COMMANDS}.stages:export", "Export text from MongoDB or from files to a corpus."),
        LazyCommand(
            "tokenize",
            f"{_COMMANDS}.stages:tokenize",
            "Encode a corpus as a dataset, with a new tokenizer, an existing one or OpenAI's.",
        ),
        LazyCommand(
            "train",
            f"{_COMMANDS}.stages:train",
            "Train a model from scratch, fine-tune one or continue a training, and optionally register it.",
        ),
        LazyCommand("generate", f"{_COMMANDS}.generate:generate", "Generate text."),
        LazyCommand(
            "doctor",
            f"{_COMMANDS}.doctor:doctor",
            "Check addresses, versions, disk and GPU, and show how to fix what is wrong.",
        ),
        LazyCommand("config", f"{_COMMANDS}.config:config", "Show the configuration, and where each value comes from."),
        LazyCommand("stack", f"{_COMMANDS}.stack:stack", "The embedded stack: every server, as local processes."),
        LazyCommand("runs", f"{_COMMANDS}.runs:runs", "Runs of plans and of pipelines."),
        LazyCommand("events", f"{_COMMANDS}.events:events", "Events on Kafka."),
        LazyCommand("jobs", f"{_COMMANDS}.jobs:jobs", "Jobs of all services."),
        LazyCommand("models", f"{_COMMANDS}.models:models", "Registered models, their versions and labels."),
        LazyCommand(
            "clients", f"{_COMMANDS}.clients:clients", "Client tokens, which identify callers to the services."
        ),
    )


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": _HELP_WIDTH},
    help="From text in a database to a GPT-2.",
)


@app.callback()
@shows_errors
def configure(
    context: typer.Context,
    file: Annotated[
        Path | None,
        typer.Option(
            "--config", envvar=FILE_VARIABLE, help="TOML file with settings. Default: gpt2.toml, where there is one."
        ),
    ] = None,
    stack_folder: Annotated[
        Path | None, typer.Option("--stack", envvar=FOLDER_VARIABLE, help="Folder of the stack whose servers are used.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Reads the configuration before any command does."""
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"
    # Imported here: it searches for a running stack, which help and completion do not need.
    from gpt2_orchestration.commands.configuration import configure_process

    context.obj = configure_process(file, stack_folder)


def main() -> None:
    """Entry point of the `gpt2` command."""
    prepare_output()
    try:
        check_arguments(sys.argv[1:], os.environ)
    except UsageError as error:
        sys.exit(print_error(error, 2))
    try:
        app()
    finally:
        # The collection at interpreter exit visits all modules, which takes a fifth of a short command's time.
        gc.freeze()
