"""Which process of a service this is, so that several can share its jobs, and whether another one still lives."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Replica:
    """One process of a service."""

    host: str
    """Its machine and name space of processes, and when that machine started."""
    pid: int
    started: int
    """When it started, in clock ticks since the machine did; tells it from a later process with its pid."""

    @classmethod
    def this(cls) -> "Replica":
        """This process."""
        pid = os.getpid()
        return cls(_host(), pid, _start_ticks(pid) or 0)

    @classmethod
    def parse(cls, text: str) -> "Replica":
        """Reads what `str` has written. Raises ValueError."""
        host, pid, started = text.rsplit("/", 2)
        return cls(host, int(pid), int(started))

    def __str__(self) -> str:
        return f"{self.host}/{self.pid}/{self.started}"

    def is_gone(self) -> bool:
        """Whether it certainly lives no more. Of a process elsewhere, this one cannot know."""
        return self.host == _host() and _start_ticks(self.pid) != self.started


def _host() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    try:
        return f"{socket.gethostname()}:{boot.read_text().strip()}:{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return f"{socket.gethostname()}:{os.getpid()}"


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/<pid>/stat; None where there is no such process, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
