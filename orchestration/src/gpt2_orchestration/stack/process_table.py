"""What the operating system knows of processes. A process is named by pid and start time, as pids are used again."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]

_SAME_START_SECONDS = 2.0
"""Start times are computed from the time since boot, so they move a little with the clock."""
_GROUP_GONE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process of all that ever had its pid."""

    pid: int
    started: float
    """Start time, in seconds since 1970."""


def identify(pid: int) -> ProcessIdentity | None:
    """The process that has a pid now; None when none has, or it has ended and only waits to be collected."""
    try:
        process = psutil.Process(pid)
        ended = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return None if ended else ProcessIdentity(pid, process.create_time())
    except psutil.Error:
        return None


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether this very process still runs."""
    now = identify(identity.pid)
    return now is not None and abs(now.started - identity.started) < _SAME_START_SECONDS


def resident_bytes(identity: ProcessIdentity) -> int:
    """Resident memory of a process and its descendants; 0 when it has ended."""
    if not is_alive(identity):
        return 0
    total = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(identity.pid)
        for member in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += member.memory_info().rss
    return total


def wait_gone(identities: Iterable[ProcessIdentity], timeout_seconds: float) -> list[ProcessIdentity]:
    """Waits until processes have ended. Returns those that have not."""
    deadline = time.monotonic() + timeout_seconds
    while (alive := [identity for identity in identities if is_alive(identity)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive


def kill_group(identity: ProcessIdentity) -> None:
    """Kills the process group that a process leads, if it is still that process."""
    if is_alive(identity):
        signal_group(identity.pid, signal.SIGKILL)


def end_group(leader: int) -> None:
    """Kills what is left of a group whose leader has ended, and waits a moment until it is gone."""
    deadline = time.monotonic() + _GROUP_GONE_SECONDS
    signal_group(leader, signal.SIGKILL)
    while _group_exists(leader) and time.monotonic() < deadline:
        time.sleep(0.01)


def signal_group(leader: int, number: signal.Signals) -> None:
    """Signals every process of a group; one that is gone is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def _group_exists(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
