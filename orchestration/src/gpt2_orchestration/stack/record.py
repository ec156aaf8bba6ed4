"""`stack.json`, which says what runs, and the lock that says whether anything does.

The lock is the operating system's: it is gone with the supervisor, however that ends. A record without a lock is what a
crashed stack left; it is never believed.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from gpt2_orchestration.stack.errors import AlreadyRunning
from gpt2_orchestration.stack.process_identity import ProcessIdentity, is_alive
from gpt2_orchestration.stack.settings import StackFolder

_FORMAT = 1


class ProcessState(StrEnum):
    """Where a process is in its life."""

    WAITING = "waiting"
    """Not started: what it needs is not there yet, or it waits to be restarted."""
    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    """It crashed too often and is not restarted."""
    STOPPING = "stopping"
    """Received SIGTERM; within its grace period."""
    STOPPED = "stopped"
    KILLED = "killed"
    """It did not stop within its grace period."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessRecord:
    """One process, as the supervisor last saw it."""

    name: str
    state: str
    address: str
    """`host:port`; empty while unknown."""
    identity: ProcessIdentity | None
    restarts: int
    start_seconds: float
    """Time that its latest start took; 0 while it is not ready."""
    note: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StackRecord:
    """A stack, as its supervisor last saw it."""

    supervisor: ProcessIdentity
    artifact_root: str
    kafka_topic: str
    """Topic of the events; empty in a record of an older version."""
    processes: tuple[ProcessRecord, ...]


def write_record(folder: StackFolder, record: StackRecord) -> None:
    """Replaces `stack.json` at once."""
    temporary = folder.record.with_suffix(".tmp")
    content = {"format": _FORMAT, **asdict(record)}
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder.record)


def read_record(folder: StackFolder) -> StackRecord | None:
    """Reads `stack.json`; None when there is none, or it is not one of this version."""
    return _read(folder.record)


def running_record(folder: Path) -> StackRecord | None:
    """What the supervisor of a folder's stack last wrote down; None where none runs in the folder."""
    layout = StackFolder(folder.absolute())
    try:
        record = read_record(layout) if is_held(layout) else None
    except OSError:
        return None
    return record if record is not None and is_alive(record.supervisor) else None


def read_previous_record(folder: StackFolder) -> StackRecord | None:
    """Reads how the stack that ran last has ended; None as for `read_record`."""
    return _read(folder.previous_record)


def _read(path: Path) -> StackRecord | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            return None
        return StackRecord(
            supervisor=ProcessIdentity(**content["supervisor"]),
            artifact_root=content["artifact_root"],
            kafka_topic=content.get("kafka_topic", ""),
            processes=tuple(_process(item) for item in content["processes"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def locked(folder: StackFolder) -> Iterator[None]:
    """Holds the folder, so that no supervisor starts in it. Raises AlreadyRunning when another process holds it."""
    with folder.lock.open("a") as lock:
        if not _try_lock(lock.fileno()):
            raise AlreadyRunning(_already_running(folder))
        yield


def is_held(folder: StackFolder) -> bool:
    """Whether a supervisor holds the folder."""
    try:
        with folder.lock.open("r") as lock:
            return not _try_lock(lock.fileno(), fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


def rotate_log(path: Path) -> None:
    """Rotates the log of the previous stack, so that a log covers one run."""
    if path.exists():
        path.replace(path.with_suffix(".previous.log"))


def _try_lock(descriptor: int, mode: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _already_running(folder: StackFolder) -> str:
    record = read_record(folder)
    who = f" (process {record.supervisor.pid})" if record else ""
    return (
        f"a stack already runs in {folder.root}{who}: `gpt2 stack status` shows it, `gpt2 stack down` stops it; "
        "or choose another folder"
    )


def _process(item: dict[str, Any]) -> ProcessRecord:
    identity = item.pop("identity")
    return ProcessRecord(**item, identity=ProcessIdentity(**identity) if identity else None)
