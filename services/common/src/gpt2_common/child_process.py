"""Child processes of a service: how they start, and the protocol that both sides speak.

Lines of JSON go both ways, each an object whose one key is its type: `{"cancel": null}`. The service holds a
ChildProcess; the child holds a ServiceConnection, and ends when its service is gone.
"""

import asyncio
import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import IO, Any

TASK = "task"
"""Command with the work to do, as an object."""
CANCEL = "cancel"
"""Command to stop the work for good."""
SUSPEND = "suspend"
"""Command to stop the work so that another attempt can resume it."""
HEARTBEAT = "heartbeat"
"""Command that does nothing but renew the child's lease, as every command does."""

EXIT_ORPHANED = 75
"""Exit status of a child whose service is gone."""

_MAX_LINE_BYTES = 1 << 24
_PR_SET_PDEATHSIG = 1


class ChildProcess:
    """The service's side of a child process.

    Args:
        process: The process, with pipes for standard input and output.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, module: str, *arguments: str, environment: Mapping[str, str]) -> "ChildProcess":
        """Starts `python -m module`. Raises OSError."""
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_MAX_LINE_BYTES,
                env=environment,
            )
        )

    @property
    def returncode(self) -> int | None:
        """Exit status, or the negative number of the signal that ended it; None while it runs."""
        return self._process.returncode

    async def send(self, command: str, content: Any = None) -> None:
        """Sends a command. One that the child no longer reads is lost."""
        if self._process.stdin is None:
            return
        with suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(f"{json.dumps({command: content})}\n".encode())
            await self._process.stdin.drain()

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """Yields the child's messages until its output ends."""
        while self._process.stdout is not None and (line := await self._process.stdout.readline()):
            yield json.loads(line)

    def kill(self) -> None:
        """Kills the process, where it still runs."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def wait(self) -> int:
        """Waits for the process to end. Returns `returncode`."""
        return await self._process.wait()


class ServiceConnection:
    """The child's side: sends messages, from any thread, and receives commands.

    Args:
        stream: Takes the messages.
        prefix: Beginning of each line, where the stream also holds lines of libraries.
    """

    def __init__(self, stream: IO[str], prefix: str = "") -> None:
        self._stream = stream
        self._prefix = prefix
        self._lock = threading.Lock()

    @classmethod
    def open(cls) -> "ServiceConnection":
        """Connects this process, as it starts, to the service that started it.

        Standard output becomes the connection's alone: what libraries print goes to standard error.
        """
        stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        if sys.platform == "linux":
            # The next attempt must be alone in its folder.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # A terminal, `gpt2 stack down` and systemd signal all processes; the service stops its children itself.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return cls(stream)

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends one message."""
        with self._lock:
            self._stream.write(f"{self._prefix}{json.dumps(message)}\n")
            self._stream.flush()

    def receive(self) -> tuple[str, Any]:
        """Waits for a command. Returns its type and content; ends the process when the service is gone."""
        line = sys.stdin.readline()
        if not line:
            # Nobody would read the result, and another attempt would work in the same folder.
            os._exit(EXIT_ORPHANED)
        [(command, content)] = json.loads(line).items()
        return command, content

    def listen(self, handle: Callable[[str, Any], None], lease_seconds: float = 0.0) -> None:
        """Passes each command on, in a thread.

        Args:
            handle: Called with a command's type and content.
            lease_seconds: The process is killed when no command has come for so long, as another replica may by then
                do the same work; 0: never.
        """

        def run() -> None:
            while True:
                command, content = self.receive()
                _renew_lease(lease_seconds)
                handle(command, content)

        _renew_lease(lease_seconds)
        threading.Thread(target=run, name="commands", daemon=True).start()


def _renew_lease(seconds: float) -> None:
    # The kernel's alarm comes even where the work never lets another thread run.
    signal.setitimer(signal.ITIMER_REAL, seconds)
