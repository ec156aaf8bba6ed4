"""An attempt of a job as a child process of the service; worker.py is its other side."""

import asyncio
import logging
import os
import signal
from contextlib import ExitStack, suppress
from pathlib import Path

from google.rpc import code_pb2, status_pb2

from gpt2_common.artifacts.work import WorkFolders
from gpt2_common.child_process import CANCEL, HEARTBEAT, SUSPEND, TASK, ChildProcess
from gpt2_common.jobs.attempt import Launcher, ReportSink
from gpt2_common.jobs.definition import JobKind
from gpt2_common.jobs.messages import Report, decode_message, encode_task
from gpt2_common.jobs.outcome import Cancelled, Failed, Outcome, Suspended
from gpt2_common.jobs.rows import StoredJob
from gpt2_common.settings import ServiceSettings
from gpt2_common.status import is_expected, status_of

_log = logging.getLogger(__name__)
_EXIT_SECONDS = 5.0


class ChildAttempt:
    """One attempt of one job in a child process; see gpt2_common.jobs.attempt.Attempt.

    Args:
        kind: What to run.
        stored: The job, and its request.
        on_report: Takes progress and warnings.
        lease_seconds: Time without a heartbeat after which the child ends itself.
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
        self._kind = kind
        self._job = stored.job
        self._task = {**encode_task(kind, stored.job, stored.request), "lease_seconds": lease_seconds}
        self._on_report = on_report
        self._folders = folders
        self._process: ChildProcess | None = None
        self._stop_command = ""
        self._stop_requested = asyncio.Event()

    async def run(self, grace_seconds: float) -> Outcome:
        """Runs the attempt to its end."""
        with ExitStack() as stack:
            try:
                temporary = stack.enter_context(self._folders.temporary(self._job.job_id))
            except OSError as error:
                if not is_expected(error):
                    _log.exception("job %s has no folder for temporary files", self._job.job_id)
                return Failed(status_of(error))
            return await self._run(grace_seconds, temporary)

    async def _run(self, grace_seconds: float, temporary: Path) -> Outcome:
        environment = {**self._kind.work.environment, **os.environ, "TMPDIR": str(temporary.absolute())}
        process = await ChildProcess.start("gpt2_common.jobs.worker", environment=environment)
        self._process = process
        killer = asyncio.create_task(self._kill_after(process, grace_seconds))
        try:
            await process.send(TASK, self._task)
            if self._stop_command:
                await process.send(self._stop_command)
            outcome = await self._read(process)
            if outcome is None:
                # It has crashed. To signal it now could reap it before asyncio does, and lose its exit status.
                with suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), _EXIT_SECONDS)
            # Closing its standard input is not enough for a child that hangs: it has sent its outcome, or crashed.
            process.kill()
            return outcome or self._crashed(await process.wait())
        finally:
            killer.cancel()
            process.kill()
            await process.wait()

    async def cancel(self) -> None:
        """Asks the work to stop for good."""
        await self._stop(CANCEL)

    async def suspend(self) -> None:
        """Asks the work to stop and be resumed later."""
        await self._stop(SUSPEND)

    async def heartbeat(self) -> None:
        """Renews the child's lease."""
        if self._process is not None:
            await self._process.send(HEARTBEAT)

    def abandon(self) -> None:
        """Kills the child, as another replica does its work now."""
        self._stop_command = SUSPEND
        if self._process is not None:
            self._process.kill()

    async def _stop(self, command: str) -> None:
        self._stop_command = command
        if self._process is not None:
            await self._process.send(command)
        self._stop_requested.set()

    async def _read(self, process: ChildProcess) -> Outcome | None:
        """Passes reports on until the outcome; None when the child ended without one."""
        async for content in process.messages():
            message = decode_message(content)
            if not isinstance(message, Report):
                return message
            await self._on_report(message)
        return None

    async def _kill_after(self, process: ChildProcess, grace_seconds: float) -> None:
        await self._stop_requested.wait()
        await asyncio.sleep(grace_seconds)
        if process.returncode is None:
            _log.warning("job %s did not stop in %s s: killed", self._job.job_id, grace_seconds)
            process.kill()

    def _crashed(self, returncode: int) -> Outcome:
        # Signals to stop end a process only before it has begun to work.
        if self._stop_command == SUSPEND or returncode in (-signal.SIGALRM, -signal.SIGTERM, -signal.SIGINT):
            return Suspended()
        if self._stop_command == CANCEL:
            return Cancelled()
        if returncode == -signal.SIGKILL:
            return Failed(
                status_pb2.Status(
                    code=code_pb2.RESOURCE_EXHAUSTED,
                    message="the job's process was killed from outside, most often because memory ran out: "
                    "choose smaller sizes or give the service more memory, and retry",
                )
            )
        how = signal.Signals(-returncode).name if returncode < 0 else f"exit status {returncode}"
        message = f"the job's process crashed ({how}): see the end of the service's log"
        return Failed(status_pb2.Status(code=code_pb2.INTERNAL, message=message))


def child_processes(settings: ServiceSettings) -> Launcher:
    """Each attempt is a child process of the service."""
    folders = WorkFolders(settings.artifact_root, settings.scratch_folder)

    def launch(kind: JobKind, stored: StoredJob, on_report: ReportSink) -> ChildAttempt:
        return ChildAttempt(kind, stored, on_report, settings.lease_seconds, folders)

    return launch
