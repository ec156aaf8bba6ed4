"""One process of the stack, from its start to its end: what state it is in, and what is due next."""

import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from gpt2_orchestration.stack.definitions import ProcessDefinition
from gpt2_orchestration.stack.orphan_reaper import OrphanReaper
from gpt2_orchestration.stack.process_identity import ProcessIdentity, identify
from gpt2_orchestration.stack.process_table import end_group, signal_group
from gpt2_orchestration.stack.readiness import accepts_connections
from gpt2_orchestration.stack.record import ProcessState

_LAUNCHER = Path(__file__).with_name("launch.py")
_LAST_LINES = 15
_LAST_BYTES = 8192


class ManagedProcess:
    """A process that the supervisor keeps. Not for use by several threads.

    Args:
        definition: What it is.
        log: File that its output goes to.
        reaper: Ends it when the supervisor is killed.
    """

    def __init__(self, definition: ProcessDefinition, log: Path, reaper: OrphanReaper) -> None:
        self.definition = definition
        self.log = log
        self.state = ProcessState.WAITING
        self.address = definition.address
        self.identity: ProcessIdentity | None = None
        self.started_with: Mapping[str, str] = {}
        """Addresses of other processes that it was started with, by variable."""
        self.start_seconds = 0.0
        """Time that its latest start took."""
        self._reaper = reaper
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._log_offset = 0

    @property
    def name(self) -> str:
        """Its name."""
        return self.definition.name

    def start(self, needed: Mapping[str, str]) -> None:
        """Starts it.

        Args:
            needed: Variables with the addresses of other processes.
        """
        if self.definition.address_file is not None:
            self.definition.address_file.unlink(missing_ok=True)
            self.address = ""
        self.started_with = dict(needed)
        self._started = time.monotonic()
        with self.log.open("ab") as log:
            self._log_offset = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_LAUNCHER), *self.definition.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self.definition.environment, **needed},
                start_new_session=True,
            )
        self._reaper.add(self._process.pid)
        self.identity = identify(self._process.pid)
        self.state = ProcessState.STARTING
        self._release(self._process)

    def check_ready(self) -> bool:
        """Whether a process that was starting answers now."""
        file = self.definition.address_file
        if file is not None and not self.address and file.exists():
            self.address = file.read_text(encoding="utf-8")
        if not self.address or not accepts_connections(self.address) or not self.definition.is_ready(self.address):
            return False
        self.state = ProcessState.READY
        self.start_seconds = time.monotonic() - self._started
        return True

    def exit_status(self) -> int | None:
        """Its exit status, once it has ended; negative for a signal."""
        return None if self._process is None else self._process.poll()

    def seconds_since_start(self) -> float:
        """Time since its latest start."""
        return time.monotonic() - self._started

    def collect(self) -> None:
        """Clears up after a process that has ended; what it had started ends too."""
        if self._process is not None:
            signal_group(self._process.pid, signal.SIGKILL)
            self._process.wait()
            end_group(self._process.pid)
            self._reaper.remove(self._process.pid)
        self._process = None
        self.identity = None
        self.state = ProcessState.WAITING

    def terminate(self) -> None:
        """Tells it to stop."""
        if self._process is not None:
            self.state = ProcessState.STOPPING
            signal_group(self._process.pid, signal.SIGTERM)

    def log_tail(self) -> str:
        """The last lines that it has logged since its latest start."""
        with self.log.open("rb") as log:
            end = log.seek(0, 2)
            log.seek(max(self._log_offset, end - _LAST_BYTES))
            lines = log.read().decode("utf-8", errors="replace").splitlines()
        return "\n".join(lines[-_LAST_LINES:])

    def _release(self, process: "subprocess.Popen[bytes]") -> None:
        """Lets the launcher continue, now that the orphan reaper knows the process."""
        if process.stdin is not None:
            process.stdin.write(b"\n")
            process.stdin.close()
