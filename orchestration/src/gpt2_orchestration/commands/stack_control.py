"""`gpt2 stack down` and `status`: a stack that another process runs."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from gpt2_orchestration.client.jobs import duration
from gpt2_orchestration.commands.configuration import current_configuration
from gpt2_orchestration.commands.errors import shows_errors
from gpt2_orchestration.commands.tables import print_table
from gpt2_orchestration.stack.control import stack_status
from gpt2_orchestration.stack.discovery import USUAL_FOLDER, SeveralStacks
from gpt2_orchestration.stack.stopping import DEFAULT_GRACE_SECONDS, Waiting, stop_stack

FoundFolderOption = Annotated[
    Path | None, typer.Option(help="Folder of the stack. Default: that of the stack that runs in this checkout.")
]

_LINE_SECONDS = 5.0


@shows_errors
def down(
    folder: FoundFolderOption = None,
    grace: Annotated[
        float, typer.Option(min=0, help="Grace period in seconds before remaining processes are killed.")
    ] = DEFAULT_GRACE_SECONDS,
) -> None:
    """Stop the stack that runs here or in a folder, and wait until all its processes have ended."""
    folder = _folder(folder)
    outcome = stop_stack(folder, grace, _WaitDisplay().show)
    what = "stopped" if outcome.had_supervisor else "its supervisor was gone; what it had left is stopped"
    killed = f"; killed, as they did not stop in time: {', '.join(outcome.killed)}" if outcome.killed else ""
    print(f"stack in {folder.absolute()}: {what}{killed}")


@shows_errors
def status(folder: FoundFolderOption = None) -> None:
    """Show the processes of the stack that runs here or in a folder."""
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
    """Folder of the selected stack. Raises StackError where several run."""
    configuration = current_configuration()
    if chosen is not None:
        return chosen
    if configuration.problem:
        raise SeveralStacks(configuration.problem)
    if configuration.notice:
        print(f"gpt2: {configuration.notice}", file=sys.stderr)
    return configuration.stack_folder or Path(USUAL_FOLDER)


class _WaitDisplay:
    """Prints every few seconds on standard error which processes a stop waits for."""

    def __init__(self) -> None:
        self._shown = time.monotonic()

    def show(self, waiting: Waiting) -> None:
        """Receives the processes that are waited for."""
        if time.monotonic() - self._shown < _LINE_SECONDS:
            return
        self._shown = time.monotonic()
        left = waiting.grace_seconds - waiting.seconds
        then = f"they are killed in {duration(left)}" if left > 0 else "they are killed"
        print(f"waiting for {', '.join(waiting.processes)} to end; {then}", file=sys.stderr, flush=True)
