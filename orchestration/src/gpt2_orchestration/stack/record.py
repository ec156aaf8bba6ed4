"""`stack.json`, which says what runs, and the lock that says whether anything does.

The lock is the operating system's: it is gone with the supervisor, however that ends. A record without a lock is what a
crashed stack left; it is never believed.
"""

import fcntl
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2_orchestration.stack.errors import AlreadyRunning
from gpt2_orchestration.stack.process_table import ProcessIdentity, descendants, kill_group, signal_process, wait_gone
from gpt2_orchestration.stack.settings import StackFolder

_FORMAT = 1
_GONE_SECONDS = 10.0


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
    """Sets the log of the stack before aside, so that a log is about one run."""
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


def _end_leftovers(folder: StackFolder) -> None:
    """Waits until the guard of a crashed stack has ended its processes; ends what is left then."""
    record = read_record(folder)
    if record is None or record.supervisor.pid == os.getpid():
        return
    leaders = [process.identity for process in record.processes if process.identity is not None]
    family = [*leaders, *(child for leader in leaders for child in descendants(leader))]
    for left in wait_gone(family, _GONE_SECONDS):
        kill_group(left)
        signal_process(left, signal.SIGKILL)
    wait_gone(family, _GONE_SECONDS)


def _process(item: dict[str, Any]) -> ProcessRecord:
    identity = item.pop("identity")
    return ProcessRecord(**item, identity=ProcessIdentity(**identity) if identity else None)
