"""The stack in this process: as a context manager, or in the foreground until a signal."""

import logging
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType

from gpt2_orchestration.stack.addresses import StackAddresses
from gpt2_orchestration.stack.definitions import ProcessDefinition, define_stack
from gpt2_orchestration.stack.exclusive import exclusive
from gpt2_orchestration.stack.ports import claimed_ports
from gpt2_orchestration.stack.record import ProcessRecord, rotate_log
from gpt2_orchestration.stack.settings import StackFolder, StackSettings
from gpt2_orchestration.stack.supervisor import OnChange, Supervisor

_log = logging.getLogger("gpt2_orchestration.stack")


def ignore_change(record: ProcessRecord) -> None:
    """Change callback that does nothing."""


@contextmanager
def running_stack(
    settings: StackSettings, on_change: OnChange = ignore_change, wait_for: Collection[str] | None = None
) -> Iterator[StackAddresses]:
    """Runs the stack as long as the context lasts.

    Args:
        settings: How to run it.
        on_change: Hears of each change of a process, on another thread.
        wait_for: Names of the processes to wait for. Default: all. The rest go on starting meanwhile.

    Yields:
        Where its servers answer.

    Raises:
        AlreadyRunning: Another process runs a stack in the folder.
        StackError: A process died or was not ready in time; the message has the end of its log. One that was not
            waited for may say so at the end of the context.
    """
    folder = StackFolder.create(settings.folder)
    with _supervised_stack(settings, folder, on_change) as supervisor:
        addresses = supervisor.wait_ready(None if wait_for is None else {*wait_for, "kafka"})
        yield StackAddresses.from_processes(addresses, folder.artifacts)
        supervisor.raise_failure()


def run_until_stopped(
    settings: StackSettings,
    on_change: OnChange = ignore_change,
    on_ready: Callable[[StackAddresses], None] = lambda _: None,
) -> None:
    """Runs the stack in the foreground. Returns when Ctrl-C, SIGTERM or `gpt2 stack down` has stopped it.

    Args:
        settings: How to run it.
        on_change: Hears of each change of a process, on another thread.
        on_ready: Hears, once, where its servers answer.

    Raises:
        AlreadyRunning, StackError: As `running_stack`.
    """
    folder = StackFolder.create(settings.folder)
    try:
        with _supervised_stack(settings, folder, on_change) as supervisor:
            on_ready(StackAddresses.from_processes(supervisor.wait_ready(), folder.artifacts))
            supervisor.wait()
    except KeyboardInterrupt:
        return


@contextmanager
def _supervised_stack(settings: StackSettings, folder: StackFolder, on_change: OnChange) -> Iterator[Supervisor]:
    with (
        exclusive(folder),
        sigterm_interrupts(),
        _logging_to(folder),
        claimed_ports(settings.ports) as ports,
        supervised(define_stack(settings, folder, ports), folder, on_change) as supervisor,
    ):
        yield supervisor


@contextmanager
def supervised(
    definitions: Collection[ProcessDefinition], folder: StackFolder, on_change: OnChange = ignore_change
) -> Iterator[Supervisor]:
    """Runs processes as long as the context lasts."""
    supervisor = Supervisor(tuple(definitions), folder, on_change)
    try:
        supervisor.start()
        yield supervisor
    finally:
        supervisor.stop()


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Lets SIGTERM do what Ctrl-C does, so that either unwinds the stack. Does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of signal handlers
    raise KeyboardInterrupt


@contextmanager
def _logging_to(folder: StackFolder) -> Iterator[None]:
    """Writes what the supervisor logs to `logs/stack.log`."""
    path = folder.log("stack")
    rotate_log(path)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = _log.level
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    try:
        yield
    finally:
        _log.removeHandler(handler)
        _log.setLevel(level)
        handler.close()
