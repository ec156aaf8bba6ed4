"""Command groups that import a command when it runs, so that help and completion need only the names.

Help is plain text, as importing Rich takes longer than everything else in a short command.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

from gpt2_orchestration.commands.errors import print_error

_WHOLE_SENTENCE = 1000
"""Maximum length of a command's description in help: not truncated."""


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """A command or group that is not imported yet.

    Args:
        name: Name on the command line.
        target: `module:attribute` of its function, or of its `typer.Typer`.
        help: The first sentence of its help.
    """

    name: str
    target: str
    help: str

    def load(self) -> Any:
        """Imports the command. Returns Typer's command object."""
        module, _, attribute = self.target.partition(":")
        found = getattr(import_module(module), attribute)
        holder = typer.Typer(rich_markup_mode=None)
        if isinstance(found, typer.Typer):
            holder.add_typer(found, name=self.name)
        else:
            holder.command(self.name)(found)
        return typer.main.get_group(holder).commands[self.name]


class HelpGroup(TyperGroup):
    """A group whose help shows the whole first sentence of each command."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - Typer's signature
        """Writes the commands with their descriptions."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.get_short_help_str(_WHOLE_SENTENCE)) for name, command in self.commands.items()]
            )


class LazyGroup(HelpGroup):
    """A group whose commands are imported when they are invoked."""

    entries: ClassVar[Sequence[LazyCommand]] = ()

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for entry in self.entries:
            self.add_command(TyperCommand(entry.name, help=entry.help, rich_markup_mode=None))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Resolves the command named by the arguments and imports it."""
        name, command, rest = super().resolve_command(ctx, args)
        entry = next((entry for entry in self.entries if entry.name == name), None)
        if entry is None:
            return name, command, rest
        try:
            return name, entry.load(), rest
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if ctx.resilient_parsing or missing.startswith(__package__.partition(".")[0]):
                raise
            needs = f"{ctx.command_path} {name} needs {missing}, which is not installed"
            raise typer.Exit(print_error(f"{needs}: install gpt2-orchestration[embedded]", 1)) from None


def load_commands(app: typer.Typer) -> Any:
    """The command line of an application with every command imported, for documentation and tests."""
    group = typer.main.get_command(app)
    _load_entries(group)
    return group


def _load_entries(command: Any) -> None:
    if isinstance(command, LazyGroup):
        for entry in command.entries:
            loaded = entry.load()
            _load_entries(loaded)
            command.add_command(loaded)
