"""Which process a pid means: it is named by pid and start time, as pids are used again.

Every command asks whether the supervisor of a stack is alive, so on Linux this reads /proc without psutil, which takes
longer to import than the question to answer.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

_SAME_START_SECONDS = 2.0
_SAME_BOOT_SECONDS = 3600.0
_STATE_FIELD = 0
_START_TICKS_FIELD = 19
"""Places in /proc/PID/stat after the command's name (proc(5), fields 3 and 22)."""
_ENDED_STATES = ("Z", "X")


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
    return _identify_by_proc(pid) if sys.platform == "linux" else _identify_by_psutil(pid)


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether this very process still runs."""
    now = identify(identity.pid)
    if now is None:
        return False
    if identity.ticks and now.ticks:
        return identity.ticks == now.ticks and abs(now.started - identity.started) < _SAME_BOOT_SECONDS
    return abs(now.started - identity.started) < _SAME_START_SECONDS


def _identify_by_proc(pid: int) -> ProcessIdentity | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The command's name can hold blanks and parentheses.
    fields = stat.rpartition(")")[2].split()
    if fields[_STATE_FIELD] in _ENDED_STATES:
        return None
    ticks = int(fields[_START_TICKS_FIELD])
    return ProcessIdentity(pid, _boot_time() + ticks / os.sysconf("SC_CLK_TCK"), ticks)


def _identify_by_psutil(pid: int) -> ProcessIdentity | None:
    import psutil  # type: ignore[import-untyped]

    try:
        process = psutil.Process(pid)
        ended = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return None if ended else ProcessIdentity(pid, process.create_time())
    except psutil.Error:
        return None


def _boot_time() -> float:
    """When the system started, in seconds since 1970."""
    content = Path("/proc/stat").read_text(encoding="ascii")
    return float(next(line.split()[1] for line in content.splitlines() if line.startswith("btime")))
