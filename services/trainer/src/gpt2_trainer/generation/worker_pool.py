"""The service's side of generation: one worker process per model in use, ended after a while without tasks.

The service itself never loads a model: it stays small, and a model's memory is freed when its process ends.
"""

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from gpt2_common.child_process import CANCEL, TASK, ChildProcess
from gpt2_common.errors import ResourceExhausted, Unavailable
from gpt2_trainer.generation.worker_messages import GenerationTask, Piece, WorkerOptions, error_from_json

_log = logging.getLogger(__name__)
_CANCEL_SECONDS = 10.0


class WorkerPool:
    """The generating processes of a service.

    Args:
        options: How they generate.
        idle_seconds: Time after which a process without work is ended.
        max_models: Models in memory at most.
    """

    def __init__(self, options: WorkerOptions, idle_seconds: float, max_models: int) -> None:
        self._options = options
        self._idle_seconds = idle_seconds
        self._max_models = max_models
        self._workers: dict[str, _Worker] = {}

    async def generate(self, digest: str, folder: Path, task: GenerationTask) -> AsyncGenerator[Piece, None]:
        """Streams text piece by piece; when the caller stops iterating, the task is cancelled.

        Args:
            digest: Digest of the model artifact; one process serves all tasks of a digest, one after the other.
            folder: Its folder.
            task: What to generate.

        Raises:
            ResourceExhausted: All models that may be in memory are generating.
            PipelineError: The model cannot be used.
        """
        worker = self._worker(digest, folder)
        worker.waiting += 1
        try:
            async with worker.lock, aclosing(worker.run(task)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            worker.waiting -= 1
            worker.used_at = time.monotonic()
            self._end_later(worker)

    async def close(self) -> None:
        """Ends all processes, and waits for their ends."""
        for worker in self._workers.values():
            await worker.end()
        self._workers.clear()

    def _worker(self, digest: str, folder: Path) -> "_Worker":
        if digest not in self._workers:
            self._make_place()
            self._workers[digest] = _Worker(digest, folder, self._options)
        return self._workers[digest]

    def _make_place(self) -> None:
        if len(self._workers) < self._max_models:
            return
        idle = [worker for worker in self._workers.values() if not worker.waiting]
        if not idle:
            raise ResourceExhausted(
                f"{self._max_models} models are generating, as many as may be in memory: "
                "try again later, or set GPT2_GENERATE_MODELS higher"
            )
        self._end(min(idle, key=lambda worker: worker.used_at))

    def _end_later(self, worker: "_Worker") -> None:
        def end_if_idle() -> None:
            if not worker.waiting and time.monotonic() - worker.used_at >= self._idle_seconds:
                self._end(worker)

        # A little later than due, as timers and clocks may differ by rounding.
        asyncio.get_running_loop().call_later(self._idle_seconds + 0.05, end_if_idle)

    def _end(self, worker: "_Worker") -> None:
        worker.kill()
        if self._workers.get(worker.digest) is worker:
            del self._workers[worker.digest]


class _Worker:
    """One generating process; it is started when first needed, and again when it has crashed."""

    def __init__(self, digest: str, folder: Path, options: WorkerOptions) -> None:
        self.digest = digest
        self.lock = asyncio.Lock()
        self.waiting = 0
        self.used_at = time.monotonic()
        self._arguments = (str(folder), options.to_argument())
        self._process: ChildProcess | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def run(self, task: GenerationTask) -> AsyncGenerator[Piece, None]:
        """Runs one task."""
        if self._stopping is not None:
            await asyncio.shield(self._stopping)
        process = await self._started()
        complete = False
        try:
            await process.send(TASK, task.to_json())
            async for message in process.messages():
                if "piece" in message:
                    yield Piece(**message["piece"])
                    continue
                complete = True
                if "error" in message:
                    raise error_from_json(message["error"])
                return
            # Its output ends before its exit status is known: the next task must not be given to a dead process.
            await self.end()
            complete = True
            raise Unavailable(
                "the process that generates text has crashed, most often because memory ran out: "
                "ask for fewer samples, or give the service more memory"
            )
        finally:
            if not complete:
                # Whoever cancels again must not leave the rest of this task to the next one.
                self._stopping = asyncio.create_task(self._cancel(process))
                await asyncio.shield(self._stopping)

    def kill(self) -> None:
        """Ends the process, and deletes its temporary files: it is killed, and cannot do so itself."""
        if self._process is not None:
            self._process.kill()
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    async def end(self) -> None:
        """Ends the process, and waits for its end: its pipes must not outlive the event loop."""
        self.kill()
        if self._process is not None:
            await self._process.wait()

    async def _started(self) -> ChildProcess:
        if self._process is None or self._process.returncode is not None:
            self.kill()
            self._temporary = tempfile.TemporaryDirectory(prefix="gpt2-generate-", ignore_cleanup_errors=True)
            environment = {**os.environ, "TMPDIR": self._temporary.name}
            module = "gpt2_trainer.generation.worker"
            self._process = await ChildProcess.start(module, *self._arguments, environment=environment)
        return self._process

    async def _cancel(self, process: ChildProcess) -> None:
        """Stops the task under way; the process stays warm if it stops soon, and is killed otherwise."""
        try:
            await process.send(CANCEL)
            async with asyncio.timeout(_CANCEL_SECONDS):
                async for message in process.messages():
                    if "piece" not in message:
                        return
        except TimeoutError:
            _log.warning("a generating process did not stop in %s s: killed", _CANCEL_SECONDS)
        await self.end()
