"""`gpt2 demo`: the whole pipeline on this machine."""

from pathlib import Path

from gpt2_orchestration.commands.errors import shows_errors
from gpt2_orchestration.commands.stack_up import FolderOption, FreePortsOption
from gpt2_orchestration.demo.demo import run_demo
from gpt2_orchestration.stack.settings import DEFAULT_PORTS


@shows_errors
def demo(folder: FolderOption = Path(".gpt2/demo"), free_ports: FreePortsOption = False) -> None:
    """Take text from MongoDB to a registered model on this machine, with no servers to install."""
    run_demo(folder, dict.fromkeys(DEFAULT_PORTS, 0) if free_ports else DEFAULT_PORTS)
