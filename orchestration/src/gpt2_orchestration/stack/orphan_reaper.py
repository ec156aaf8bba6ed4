"""A small process that ends the stack when its supervisor is killed.

It reads `add PID` and `remove PID` from the supervisor, each PID the leader of a process group. End of file means that
the supervisor is gone, also by `kill -9`: the remaining groups get SIGTERM, then SIGKILL.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO

_GRACE_SECONDS = 5.0


class OrphanReaper:
    """The supervisor's side: the process, and the groups that it knows."""

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._process = _start(())

    def add(self, leader: int) -> None:
        """Registers a process group."""
        self._groups.add(leader)
        self._send(f"add {leader}")

    def remove(self, leader: int) -> None:
        """Removes a process group that has ended."""
        self._groups.discard(leader)
        self._send(f"remove {leader}")

    def ensure_alive(self) -> None:
        """Restarts the process if it has died."""
        if self._process.poll() is not None:
            self._process = _start(self._groups)

    def close(self) -> None:
        """Closes the pipe; the process ends the remaining groups."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()

    def _send(self, line: str) -> None:
        stream = self._process.stdin
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.write(line.encode() + b"\n")
                stream.flush()


def main(groups: set[int], commands: IO[str]) -> None:
    """Follows the supervisor to its end, then ends what is left.

    Args:
        groups: Process groups that are there already.
        commands: What the supervisor sends.
    """
    for line in commands:
        action, _, leader = line.strip().partition(" ")
        if action == "add":
            groups.add(int(leader))
        else:
            groups.discard(int(leader))
    end_groups(groups)


def end_groups(groups: Iterable[int]) -> None:
    """Tells process groups to stop, and kills those that have not after a few seconds."""
    alive = [leader for leader in groups if _signal(leader, signal.SIGTERM)]
    deadline = time.monotonic() + _GRACE_SECONDS
    while alive and time.monotonic() < deadline:
        time.sleep(0.1)
        alive = [leader for leader in alive if _signal(leader, 0)]
    for leader in alive:
        _signal(leader, signal.SIGKILL)


def _signal(leader: int, number: int) -> bool:
    """Signals a group. Returns whether it is there."""
    try:
        os.killpg(leader, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _start(groups: Iterable[int]) -> "subprocess.Popen[bytes]":
    # A new session: signals to the supervisor's terminal or group must not reach it. Run as a file:
    # it needs the standard library alone.
    command = [sys.executable, "-I", "-S", str(Path(__file__)), *map(str, groups)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


if __name__ == "__main__":
    main(set(map(int, sys.argv[1:])), sys.stdin)
