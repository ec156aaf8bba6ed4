"""What the operating system knows of processes. A process is named by pid and start time, as pids are used again."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil  # type: ignore[import-untyped]

_SAME_START_SECONDS = 2.0
_SAME_BOOT_SECONDS = 3600.0
_START_TICKS_FIELD = 19
"""Place of the start time in /proc/PID/stat after the command's name (proc(5), field 22)."""
_GROUP_GONE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process of all that ever had its pid."""

    pid: int
    started: float = field(compare=False)
    """Start time, in seconds since 1970. It is computed from the time since boot, so it moves with the clock."""
    ticks: int = 0
    """Start time, in clock ticks since boot; 0 where the system does not say. It never moves."""


def identify(pid: int) -> ProcessIdentity | None:
    """The process that has a pid now; None when none has, or it has ended and only waits to be collected."""
    try:
        process = psutil.Process(pid)
        ended = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return None if ended else ProcessIdentity(pid, process.create_time(), _start_ticks(pid))
    except psutil.Error:
        return None


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether this very process still runs."""
    now = identify(identity.pid)
    if now is None:
        return False
    if identity.ticks and now.ticks:
        return identity.ticks == now.ticks and abs(now.started - identity.started) < _SAME_BOOT_SECONDS
    return abs(now.started - identity.started) < _SAME_START_SECONDS


def _start_ticks(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    # The command's name can hold blanks and parentheses.
    return int(stat.rpartition(")")[2].split()[_START_TICKS_FIELD])


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


def descendants(identity: ProcessIdentity) -> list[ProcessIdentity]:
    """The processes that a process has started, and those that they have started, as far as they run now."""
    if not is_alive(identity):
        return []
    try:
        members = psutil.Process(identity.pid).children(recursive=True)
    except psutil.Error:
        return []
    return [found for member in members if (found := identify(member.pid)) is not None]


def status_word(identity: ProcessIdentity) -> str:
    """What the operating system says that a process does, such as `sleeping` or `disk-sleep`."""
    try:
        return str(psutil.Process(identity.pid).status())
    except psutil.Error:
        return "ended"


def signal_process(identity: ProcessIdentity, number: signal.Signals) -> None:
    """Signals a process if it is still that process: another that has got its pid since is left alone.

    Raises:
        PermissionError: It belongs to another user.
    """
    with contextlib.suppress(ProcessLookupError):
        if not hasattr(os, "pidfd_open"):
            if is_alive(identity):
                os.kill(identity.pid, number)
            return
        # The descriptor stays with one process: who has the pid when it is compared is who gets the signal.
        descriptor = os.pidfd_open(identity.pid)
        try:
            if is_alive(identity):
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


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
