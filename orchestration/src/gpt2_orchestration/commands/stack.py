"""`gpt2 stack`: the table of its commands. Each is imported alone, as `up` needs many more packages than the others."""

import typer

from gpt2_orchestration.commands.command_groups import LazyCommand, LazyGroup

_COMMANDS = "gpt2_orchestration.commands"


class StackCommands(LazyGroup):
    """The commands of the embedded stack."""

    entries = (
        LazyCommand("up", f"{_COMMANDS}.stack_up:up", "Start the stack and run it until Ctrl-C or `gpt2 stack down`."),
        LazyCommand(
            "down",
            f"{_COMMANDS}.stack_control:down",
            "Stop the stack that runs here or in a folder, and wait until all its processes have ended.",
        ),
        LazyCommand(
            "status",
            f"{_COMMANDS}.stack_control:status",
            "Show the processes of the stack that runs here or in a folder.",
        ),
    )


stack = typer.Typer(
    cls=StackCommands, no_args_is_help=True, help="The embedded stack: every server, as local processes."
)
