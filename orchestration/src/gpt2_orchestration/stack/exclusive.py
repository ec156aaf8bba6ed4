"""Holds a stack's folder for one supervisor, once what a crashed one left in it has ended."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from gpt2_orchestration.stack.process_table import descendants, kill_group, signal_process, wait_gone
from gpt2_orchestration.stack.record import locked, read_record
from gpt2_orchestration.stack.settings import StackFolder

_GONE_SECONDS = 10.0


@contextmanager
def exclusive(folder: StackFolder) -> Iterator[None]:
    """Holds the folder for one supervisor, and clears up what a crashed one has left in it.

    Raises:
        AlreadyRunning: Another process holds it.
    """
    with locked(folder):
        _end_leftovers(folder)
        try:
            yield
        finally:
            with suppress(FileNotFoundError):
                folder.record.replace(folder.previous_record)


def _end_leftovers(folder: StackFolder) -> None:
    """Waits until the orphan reaper of a crashed stack has ended its processes; ends what is left then."""
    record = read_record(folder)
    if record is None or record.supervisor.pid == os.getpid():
        return
    leaders = [process.identity for process in record.processes if process.identity is not None]
    family = [*leaders, *(child for leader in leaders for child in descendants(leader))]
    for left in wait_gone(family, _GONE_SECONDS):
        kill_group(left)
        signal_process(left, signal.SIGKILL)
    wait_gone(family, _GONE_SECONDS)
