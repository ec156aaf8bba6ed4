"""What the operating system knows of processes: their memory, children and groups, and signals to them."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable

import psutil  # type: ignore[import-untyped]

from gpt2_orchestration.stack.process_identity import ProcessIdentity, identify, is_alive

_GROUP_GONE_SECONDS = 2.0


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
