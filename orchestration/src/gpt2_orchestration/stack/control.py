"""Asks about a stack that runs in another process."""

import time
from dataclasses import dataclass
from pathlib import Path

from gpt2_orchestration.stack.process_identity import is_alive
from gpt2_orchestration.stack.process_table import resident_bytes
from gpt2_orchestration.stack.record import ProcessRecord, ProcessState, running_record
from gpt2_orchestration.stack.settings import StackFolder
from gpt2_orchestration.stack.stopping import not_running


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessStatus:
    """One process of a running stack, now."""

    name: str
    state: str
    """waiting, starting, ready, failed, stopping, stopped or killed."""
    pid: int
    """0 while it does not run."""
    address: str
    resident_bytes: int
    """Memory of it and its descendants."""
    uptime_seconds: float
    restarts: int
    start_seconds: float
    """Time that its latest start took; 0 while it is not ready."""
    log: Path
    note: str
    """What a user should know of it."""


def stack_status(folder: Path) -> tuple[ProcessStatus, ...]:
    """How the processes of a stack are, in the order of their start. Raises NotRunning."""
    layout = StackFolder(folder.absolute())
    record = running_record(layout.root)
    if record is None:
        raise not_running(layout)
    return tuple(_status(process, layout) for process in record.processes)


def _status(process: ProcessRecord, folder: StackFolder) -> ProcessStatus:
    identity = process.identity if process.identity is not None and is_alive(process.identity) else None
    died = identity is None and process.state in (ProcessState.STARTING, ProcessState.READY)
    return ProcessStatus(
        name=process.name,
        state=ProcessState.WAITING.value if died else process.state,
        pid=identity.pid if identity else 0,
        address=process.address,
        resident_bytes=resident_bytes(identity) if identity else 0,
        uptime_seconds=time.time() - identity.started if identity else 0.0,
        restarts=process.restarts,
        start_seconds=process.start_seconds,
        log=folder.log(process.name),
        note=process.note,
    )
