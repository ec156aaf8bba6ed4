"""The supervisor: starts the processes, watches them, restarts what crashes, stops them in order.

One thread does all of it, in small steps that never wait for a single process; other threads only ask and wait.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import groupby

from gpt2_orchestration.stack.definitions import ProcessDefinition
from gpt2_orchestration.stack.errors import StackError
from gpt2_orchestration.stack.orphan_reaper import OrphanReaper
from gpt2_orchestration.stack.process import ManagedProcess
from gpt2_orchestration.stack.process_identity import identify
from gpt2_orchestration.stack.record import ProcessRecord, ProcessState, StackRecord, rotate_log, write_record
from gpt2_orchestration.stack.restarts import RestartPolicy
from gpt2_orchestration.stack.settings import StackFolder

_log = logging.getLogger(__name__)
_STEP_SECONDS = 0.1
_SETTLED_STEP_SECONDS = 0.5
"""When nothing starts: a crash is seen after that at the latest."""
_SETTLED = (ProcessState.READY, ProcessState.FAILED)

OnChange = Callable[[ProcessRecord], None]
"""Hears of each change of a process, on the supervisor's thread."""


class Supervisor:
    """The processes of one stack.

    Args:
        definitions: What to run.
        folder: Where logs and `stack.json` go.
        on_change: Hears of changes.
    """

    def __init__(self, definitions: Sequence[ProcessDefinition], folder: StackFolder, on_change: OnChange) -> None:
        self._definitions = definitions
        self._folder = folder
        self._on_change = on_change
        self._processes: dict[str, ManagedProcess] = {}
        self._restarts = {definition.name: RestartPolicy() for definition in definitions}
        self._been_ready: set[str] = set()
        self._failure: Exception | None = None
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        # Threads are never joined here: in Python 3.11 a join that a signal interrupts takes the thread for ended.
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stack-supervisor")

    def start(self) -> None:
        """Begins to start the processes. Does not wait for them."""
        self._thread.start()

    def wait_ready(self, names: Collection[str] | None = None) -> Mapping[str, str]:
        """Waits until these processes have answered.

        Args:
            names: Which; all when None.

        Returns:
            The address of every process that has one by now.

        Raises:
            StackError: A process died or was not ready in time; all are stopped.
        """
        wanted = {definition.name for definition in self._definitions} if names is None else set(names)
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or self._been_ready >= wanted)
            self.raise_failure()
            return {process.name: process.address for process in self._processes.values() if process.address}

    def wait(self) -> None:
        """Waits until the stack has been stopped. Raises StackError when it ended for another reason."""
        self._ended.wait()
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raises StackError when the stack has ended by itself."""
        if isinstance(self._failure, StackError):
            raise self._failure
        if self._failure is not None:
            raise StackError(f"the stack ended, which is a bug: {self._failure!r}") from self._failure

    def stop(self) -> None:
        """Stops all processes and waits for that. Interrupted by Ctrl-C, it kills them at once."""
        self._stopping.set()
        if self._thread.ident is None:
            return
        try:
            self._ended.wait()
        except KeyboardInterrupt:
            self._hurry.set()
            self._ended.wait()

    def _run(self) -> None:
        reaper = OrphanReaper()
        try:
            for definition in self._definitions:
                log = self._folder.log(definition.name)
                rotate_log(log)
                self._processes[definition.name] = ManagedProcess(definition, log, reaper)
            while not self._stopping.is_set():
                reaper.ensure_alive()
                for process in self._processes.values():
                    self._advance(process)
                settled = all(process.state in _SETTLED for process in self._processes.values())
                self._stopping.wait(_SETTLED_STEP_SECONDS if settled else _STEP_SECONDS)
        except Exception as error:  # noqa: BLE001 - any error is reported to the caller, and everything is stopped
            self._fail(error)
        finally:
            try:
                self._stop_all()
                reaper.close()
            finally:
                self._ended.set()

    def _advance(self, process: ManagedProcess) -> None:
        """Does what is due for one process."""
        if process.state is ProcessState.WAITING:
            self._start_if_due(process)
        elif process.state is ProcessState.FAILED:
            return
        elif process.exit_status() is not None:
            self._has_died(process)
        elif process.state is ProcessState.STARTING:
            self._check_started(process)
        elif self._needed(process) not in (None, process.started_with):
            self._restart_with_new_address(process)

    def _start_if_due(self, process: ManagedProcess) -> None:
        needed = self._needed(process)
        if needed is not None and self._restarts[process.name].is_due(time.monotonic()):
            process.start(needed)
            self._publish_state(process)

    def _check_started(self, process: ManagedProcess) -> None:
        if process.check_ready():
            with self._changed:
                self._been_ready.add(process.name)
            _log.info("%s is ready at %s after %.1f s", process.name, process.address, process.start_seconds)
            self._publish_state(process)
        elif process.seconds_since_start() > process.definition.start_timeout_seconds:
            self._has_died(process)

    def _has_died(self, process: ManagedProcess) -> None:
        status = process.exit_status()
        what = "did not answer in time" if status is None else f"ended ({_describe_exit(status)})"
        if process.name not in self._been_ready:
            raise StackError(f"{process.name} {what}; the end of its log {process.log}:\n{process.log_tail()}")
        process.collect()
        delay = self._restarts[process.name].record_crash(time.monotonic())
        if delay is None:
            process.state = ProcessState.FAILED
            _log.error("%s %s too often; it is left alone: see %s", process.name, what, process.log)
        else:
            _log.warning("%s %s; it starts again in %.0f s: see %s", process.name, what, delay, process.log)
        self._publish_state(process)

    def _restart_with_new_address(self, process: ManagedProcess) -> None:
        _log.info("%s starts again, as a server that it needs has a new address", process.name)
        self._stop_group([process])
        process.state = ProcessState.WAITING

    def _needed(self, process: ManagedProcess) -> dict[str, str] | None:
        """Addresses that a process needs, by variable; None while one is unknown."""
        needs = process.definition.needs
        addresses = {variable: self._processes[name].address for variable, name in needs.items()}
        return addresses if all(addresses.values()) else None

    def _stop_all(self) -> None:
        ordered = sorted(self._processes.values(), key=_stop_order)
        for _, group in groupby(ordered, key=_stop_order):
            self._stop_group(list(group))

    def _stop_group(self, group: Sequence[ManagedProcess]) -> None:
        """Tells processes to stop, waits for their grace, and kills what is left."""
        for process in group:
            process.terminate()
            self._publish_state(process)
        began = time.monotonic()
        waiting = list(group)
        while waiting and not self._hurry.is_set():
            time.sleep(_STEP_SECONDS / 2)
            passed = time.monotonic() - began
            waiting = [item for item in waiting if _is_running(item) and passed < item.definition.stop_grace_seconds]
        for process in group:
            is_running = _is_running(process)
            if is_running:
                why = "at once, as asked" if self._hurry.is_set() else "as it did not stop in time"
                _log.warning("%s is killed, %s", process.name, why)
            process.collect()
            process.state = ProcessState.KILLED if is_running else ProcessState.STOPPED
            self._publish_state(process)

    def _fail(self, error: Exception) -> None:
        if not isinstance(error, StackError):
            _log.exception("the supervisor failed")
        with self._changed:
            self._failure = error
            self._changed.notify_all()

    def _publish_state(self, process: ManagedProcess) -> None:
        """Writes the record of the stack and notifies listeners."""
        records = tuple(self._record(item) for item in self._processes.values())
        supervisor = identify(os.getpid())
        if supervisor is not None:
            root = str(self._folder.artifacts)
            topics = (item.environment.get("GPT2_KAFKA_TOPIC", "") for item in self._definitions if item.needs)
            topic = next(topics, "")
            write_record(
                self._folder,
                StackRecord(supervisor=supervisor, artifact_root=root, kafka_topic=topic, processes=records),
            )
        self._on_change(self._record(process))
        with self._changed:
            self._changed.notify_all()

    def _record(self, process: ManagedProcess) -> ProcessRecord:
        return ProcessRecord(
            name=process.name,
            state=process.state.value,
            address=process.address,
            identity=process.identity,
            restarts=self._restarts[process.name].crashes,
            start_seconds=process.start_seconds if process.state is ProcessState.READY else 0.0,
            note=process.definition.note,
        )


def _stop_order(process: ManagedProcess) -> int:
    return process.definition.stop_order


def _is_running(process: ManagedProcess) -> bool:
    return process.identity is not None and process.exit_status() is None


def _describe_exit(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"
