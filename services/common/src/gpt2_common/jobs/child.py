"""The service's side of a child process: starts it, hears its progress and result, stops it."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

from google.rpc import code_pb2, status_pb2

from gpt2_common.artifacts.work import WorkFolders
from gpt2_common.jobs.attempt import (
    Failed,
    Launcher,
    Outcome,
    Report,
    ReportSink,
    Suspended,
    cancelled,
    describe_task,
    read_message,
)
from gpt2_common.jobs.definition import JobKind
from gpt2_common.jobs.rows import StoredJob
from gpt2_common.settings import ServiceSettings
from gpt2_common.status import status_of

_log = logging.getLogger(__name__)
_LINE_LIMIT = 1 << 24
_EXIT_SECONDS = 5.0


class Child:
    """One attempt of one job in a process of its own.

    Args:
        kind: What to run.
        stored: The job, and its request.
        on_report: Hears how far it is, and of warnings.
        lease_seconds: Silence of its service after which it ends itself.
        folders: Where jobs work. Temporary files of the process go there too, as a process that is killed cannot
            delete its own.
    """

    def __init__(
        self,
        kind: JobKind,
        stored: StoredJob,
        on_report: ReportSink,
        lease_seconds: float,
        folders: WorkFolders,
    ) -> None:
        self._lease_seconds = lease_seconds
        self._folders = folders
        self._kind = kind
        self._stored = stored
        self._on_report = on_report
        self._process: asyncio.subprocess.Process | None = None
        self._told = ""
        self._stop_requested = asyncio.Event()

    async def run(self, grace_seconds: float) -> Outcome:
        """Runs the attempt to its end.

        Args:
            grace_seconds: Time between being told to stop and being killed.
        """
        with ExitStack() as stack:
            try:
                temporary = stack.enter_context(self._folders.temporary(self._stored.job.job_id))
            except OSError as error:
                return Failed(status_of(error))
            return await self._run(grace_seconds, temporary)

    async def _run(self, grace_seconds: float, temporary: Path) -> Outcome:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "gpt2_common.jobs.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_LIMIT,
            env={**self._kind.environment, **os.environ, "TMPDIR": str(temporary.absolute())},
        )
        self._process = process
        killer = asyncio.create_task(self._kill_after(process, grace_seconds))
        try:
            await self._write(
                json.dumps({**describe_task(self._kind, self._stored), "lease_seconds": self._lease_seconds})
            )
            if self._told:
                await self._write(self._told)
            outcome = await self._read(process)
            if outcome is None:
                # It has died. To signal it now could reap it before asyncio does, and lose what it died of.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), _EXIT_SECONDS)
            # Closing its standard input is not enough for a child that is stuck: it has said its result, or died.
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            return outcome or self._crashed(process.returncode or 0)
        finally:
            killer.cancel()
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def cancel(self) -> None:
        """Tells the work to stop for good; it is killed when the grace is over."""
        await self._tell("cancel")

    async def suspend(self) -> None:
        """Tells the work to stop and be taken up later; it is killed when the grace is over."""
        await self._tell("suspend")

    async def keep(self) -> None:
        """Says that the job is still this replica's. Without a word for the length of a lease it ends itself."""
        await self._write("keep")

    def abandon(self) -> None:
        """Ends the work at once, as another replica does it now."""
        self._told = "suspend"
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _tell(self, command: str) -> None:
        self._told = command
        if self._process is not None:
            await self._write(command)
        self._stop_requested.set()

    async def _write(self, line: str) -> None:
        if self._process is None or self._process.stdin is None:
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(line.encode() + b"\n")
            await self._process.stdin.drain()

    async def _read(self, process: asyncio.subprocess.Process) -> Outcome | None:
        """Hears the child until its result; None when it died without one."""
        if process.stdout is None:
            return None
        async for line in process.stdout:
            message = read_message(json.loads(line))
            if not isinstance(message, Report):
                return message
            await self._on_report(message)
        return None

    async def _kill_after(self, process: asyncio.subprocess.Process, grace_seconds: float) -> None:
        await self._stop_requested.wait()
        await asyncio.sleep(grace_seconds)
        if process.returncode is None:
            _log.warning("job %s did not stop in %s s: killed", self._stored.job.job_id, grace_seconds)
            process.kill()

    def _crashed(self, returncode: int) -> Outcome:
        if self._told == "suspend" or returncode == -signal.SIGALRM:
            return Suspended()
        if self._told == "cancel":
            return cancelled()
        if returncode == -signal.SIGKILL:
            return Failed(
                status_pb2.Status(
                    code=code_pb2.RESOURCE_EXHAUSTED,
                    message="the job's process was killed from outside, most often because memory ran out: "
                    "choose smaller sizes or give the service more memory, and retry",
                )
            )
        how = signal.Signals(-returncode).name if returncode < 0 else f"exit status {returncode}"
        message = f"the job's process died ({how}): the service's log has its last words"
        return Failed(status_pb2.Status(code=code_pb2.INTERNAL, message=message))


def child_processes(settings: ServiceSettings) -> Launcher:
    """Each attempt is a child process of the service."""
    folders = WorkFolders(settings.artifact_root, settings.scratch_folder)

    def launch(kind: JobKind, stored: StoredJob, on_report: ReportSink) -> Child:
        return Child(kind, stored, on_report, settings.lease_seconds, folders)

    return launch
