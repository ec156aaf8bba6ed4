"""Stops a stack that another process runs: asks it to, waits and says for what, and kills what is left.

Its processes are known by pid and start time, and what they have started counts among them. Nothing else is signalled.
"""

import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from gpt2_orchestration.stack.errors import NotRunning, StackError
from gpt2_orchestration.stack.process_identity import ProcessIdentity, is_alive
from gpt2_orchestration.stack.process_table import descendants, signal_process, status_word
from gpt2_orchestration.stack.record import (
    ProcessState,
    StackRecord,
    is_held,
    locked,
    read_previous_record,
    read_record,
)
from gpt2_orchestration.stack.settings import StackFolder

DEFAULT_GRACE_SECONDS = 180.0
"""More than the supervisor itself takes to stop the services and then the rest, and to kill what does not."""

_KILL_SECONDS = 60.0
_STEP_SECONDS = 0.1
_SUPERVISOR = "supervisor"
_REAPER = "reaper"


@dataclass(frozen=True, kw_only=True, slots=True)
class Waiting:
    """What a stop waits for."""

    processes: tuple[str, ...]
    """Each as `name (pid 17)`."""
    seconds: float
    """Time since it was asked to stop."""
    grace_seconds: float
    """Time after which it is killed."""


OnWait = Callable[[Waiting], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class StopOutcome:
    """How a stack was stopped."""

    killed: tuple[str, ...]
    """Names of the processes that were killed, as they did not stop in time."""
    had_supervisor: bool
    """False where the supervisor was gone already, and only processes that it had left were ended."""


def stop_stack(
    folder: Path, grace_seconds: float = DEFAULT_GRACE_SECONDS, on_wait: OnWait = lambda _: None
) -> StopOutcome:
    """Stops a stack, or what a killed supervisor has left of one, and returns when all of it is gone.

    Args:
        folder: Folder of the stack.
        grace_seconds: Time to stop, after which what is left is killed.
        on_wait: Called several times a second while it waits.

    Raises:
        NotRunning: Nothing of a stack runs in the folder.
        StackError: Processes belong to another user, or do not end although they are killed.
    """
    layout = StackFolder(folder.absolute())
    record = read_record(layout)
    if record is None:
        raise not_running(layout)
    stop = _Stop(layout, record, grace_seconds, on_wait)
    try:
        if is_held(layout) and is_alive(record.supervisor):
            return stop.with_supervisor()
        # No new stack starts in the folder meanwhile.
        with locked(layout):
            return stop.without_supervisor()
    except PermissionError as error:
        raise StackError(f"the stack in {layout.root} belongs to another user: stop it as that user") from error


def not_running(folder: StackFolder) -> NotRunning:
    """The error that says that no stack runs in a folder."""
    return NotRunning(f"no stack runs in {folder.root}: `gpt2 stack up` starts one")


class _Stop:
    """One stop.

    Args:
        folder: The stack's folder.
        record: What ran when it began.
        grace_seconds: Time after which what is left is killed.
        on_wait: Hears what it waits for.
    """

    def __init__(self, folder: StackFolder, record: StackRecord, grace_seconds: float, on_wait: OnWait) -> None:
        self._folder = folder
        self._record = record
        self._grace_seconds = grace_seconds
        self._on_wait = on_wait
        self._names: dict[ProcessIdentity, str] = {record.supervisor: _SUPERVISOR}
        self._add(record)

    def with_supervisor(self) -> StopOutcome:
        """Asks the supervisor, which stops its processes in their order."""
        # What its processes have started is found while they are there.
        self._alive()
        signal_process(self._record.supervisor, signal.SIGTERM)
        killed = self._wait_and_kill()
        ended = read_previous_record(self._folder)
        if ended is not None and ended.supervisor == self._record.supervisor:
            killed |= {item.name for item in ended.processes if item.state == ProcessState.KILLED}
        return StopOutcome(killed=tuple(sorted(killed)), had_supervisor=True)

    def without_supervisor(self) -> StopOutcome:
        """Asks each process that a killed supervisor has left. Raises NotRunning where there is none."""
        left = self._alive()
        if not left:
            raise not_running(self._folder)
        for identity in left:
            signal_process(identity, signal.SIGTERM)
        return StopOutcome(killed=tuple(sorted(self._wait_and_kill())), had_supervisor=False)

    def _wait_and_kill(self) -> set[str]:
        """Waits until all is gone, and kills what is not in time. Returns the names of what was killed."""
        began = time.monotonic()
        while (left := self._alive()) and time.monotonic() - began < self._grace_seconds:
            self._tell(left, began)
            time.sleep(_STEP_SECONDS)
        killed: set[str] = set()
        deadline = time.monotonic() + _KILL_SECONDS
        while left and time.monotonic() < deadline:
            # The supervisor is the first: it would start again what ends before it.
            for identity in left:
                signal_process(identity, signal.SIGKILL)
            killed |= {self._names[identity] for identity in left} - {_REAPER}
            self._tell(left, began)
            time.sleep(_STEP_SECONDS)
            left = self._alive()
        if left:
            states = ", ".join(f"{self._name(item)} in state {status_word(item)}" for item in left)
            raise StackError(
                f"still there {_KILL_SECONDS:.0f} s after they were killed: {states}; the kernel ends a process when "
                "the disk or device that it waits for answers: run `gpt2 stack down` again then"
            )
        return killed

    def _alive(self) -> list[ProcessIdentity]:
        """What still runs of the stack, the supervisor first; finds what was started since it was last asked."""
        record = read_record(self._folder)
        if record is not None and record.supervisor == self._record.supervisor:
            self._add(record)
        alive = [identity for identity in self._names if is_alive(identity)]
        # By pid: the start times that two processes compute for a third differ a little.
        known = {identity.pid for identity in alive}
        for identity in tuple(alive):
            for child in descendants(identity):
                if child.pid not in known:
                    known.add(child.pid)
                    self._names[child] = self._child_name(identity)
                    alive.append(child)
        return alive

    def _add(self, record: StackRecord) -> None:
        for process in record.processes:
            if process.identity is not None:
                self._names.setdefault(process.identity, process.name)

    def _child_name(self, parent: ProcessIdentity) -> str:
        name = self._names[parent]
        return _REAPER if name == _SUPERVISOR else name

    def _name(self, identity: ProcessIdentity) -> str:
        return f"{self._names[identity]} (pid {identity.pid})"

    def _tell(self, left: Iterable[ProcessIdentity], began: float) -> None:
        names = tuple(self._name(identity) for identity in left)
        seconds = time.monotonic() - began
        self._on_wait(Waiting(processes=names, seconds=seconds, grace_seconds=self._grace_seconds))
