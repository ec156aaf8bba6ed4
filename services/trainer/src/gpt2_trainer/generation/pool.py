"""The service's side of generation: one process for each model in use, warm for a while, then ended.

The service itself never loads a model: it stays small, and the memory of a model comes back when its process ends.
"""

import asyncio
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

from gpt2_common.errors import ResourceExhausted, Unavailable
from gpt2_trainer.generation.messages import CANCEL, GenerationTask, Piece, error_from_json

_log = logging.getLogger(__name__)
_LINE_LIMIT = 1 << 24
_CANCEL_SECONDS = 10.0


class GenerationPool:
    """The generating processes of a service.

    Args:
        backend: What Keras generates with: tensorflow or jax.
        precision: Type that matrices are multiplied in: float32 or bfloat16.
        idle_seconds: Time after which a process without work is ended.
        most: Models in memory at most.
    """

    def __init__(self, backend: str, precision: str, idle_seconds: float, most: int) -> None:
        self._backend = backend
        self._precision = precision
        self._idle_seconds = idle_seconds
        self._most = most
        self._workers: dict[str, _Worker] = {}

    async def generate(self, digest: str, folder: Path, task: GenerationTask) -> AsyncGenerator[Piece, None]:
        """Generates text piece by piece; when the caller goes away, the work stops.

        Args:
            digest: Digest of the model artifact; one process serves all tasks of a digest, one after the other.
            folder: Its folder.
            task: What to generate.

        Raises:
            ResourceExhausted: All models that may be in memory are at work.
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

    def close(self) -> None:
        """Ends all processes."""
        for worker in self._workers.values():
            worker.kill()
        self._workers.clear()

    def _worker(self, digest: str, folder: Path) -> "_Worker":
        if digest not in self._workers:
            self._make_place()
            self._workers[digest] = _Worker(digest, folder, self._backend, self._precision)
        return self._workers[digest]

    def _make_place(self) -> None:
        if len(self._workers) < self._most:
            return
        idle = [worker for worker in self._workers.values() if not worker.waiting]
        if not idle:
            raise ResourceExhausted(
                f"{self._most} models are generating, as many as may be in memory: "
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
    """One generating process; it is started when first needed, and again when it has died."""

    def __init__(self, digest: str, folder: Path, backend: str, precision: str) -> None:
        self.digest = digest
        self.lock = asyncio.Lock()
        self.waiting = 0
        self.used_at = time.monotonic()
        self._arguments = (str(folder), backend, precision)
        self._process: asyncio.subprocess.Process | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def run(self, task: GenerationTask) -> AsyncGenerator[Piece, None]:
        """Runs one task."""
        if self._stopping is not None:
            await asyncio.shield(self._stopping)
        process = await self._started()
        complete = False
        try:
            await _write(process, task.to_line())
            async for message in _messages(process):
                if "piece" in message:
                    yield Piece(**message["piece"])
                elif "error" in message:
                    complete = True
                    raise error_from_json(message)
                else:
                    complete = True
                    return
            complete = True
            raise Unavailable(
                "the process that generates text has died, most often because memory ran out: "
                "ask for fewer samples, or give the service more memory"
            )
        finally:
            if not complete:
                # Whoever cancels again must not leave the rest of this task to the next one.
                self._stopping = asyncio.create_task(self._cancel(process))
                await asyncio.shield(self._stopping)

    def kill(self) -> None:
        """Ends the process, and deletes its temporary files: it is killed, and cannot do so itself."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self.kill()
            self._temporary = tempfile.TemporaryDirectory(prefix="gpt2-generate-", ignore_cleanup_errors=True)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "gpt2_trainer.generation.worker",
                *self._arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LINE_LIMIT,
                env={**os.environ, "TMPDIR": self._temporary.name},
            )
        return self._process

    async def _cancel(self, process: asyncio.subprocess.Process) -> None:
        """Stops the task under way; the process stays warm if it stops soon, and is killed otherwise."""
        try:
            await _write(process, CANCEL)
            async with asyncio.timeout(_CANCEL_SECONDS):
                async for message in _messages(process):
                    if "piece" not in message:
                        return
        except TimeoutError:
            _log.warning("a generating process did not stop in %s s: killed", _CANCEL_SECONDS)
        self.kill()
        await process.wait()


async def _write(process: asyncio.subprocess.Process, line: str) -> None:
    if process.stdin is None:
        return
    with suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(line.encode())
        await process.stdin.drain()


async def _messages(process: asyncio.subprocess.Process) -> AsyncIterator[dict[str, Any]]:
    if process.stdout is None:
        return
    while line := await process.stdout.readline():
        yield json.loads(line)
