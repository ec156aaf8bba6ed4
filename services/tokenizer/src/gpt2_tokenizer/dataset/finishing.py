"""Puts finished shards in their place on a thread of its own, so that encoding goes on while the disk takes them."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from gpt2_common.artifacts import ArtifactWriter
from gpt2_common.durable import replace_durable
from gpt2_tokenizer.dataset.checkpoint import Checkpoint

# So many wait at the most, so that a slow disk holds the encoding up before the work that a crash would lose grows.
_WAITING = 4


class Finisher:
    """Finishes shards and saves checkpoints, in the order in which they are given.

    A shard is whole, on the disk and hashed before the next thing is done, so a checkpoint never names one that is not.

    Args:
        writer: The artifact that the shards belong to.
        work: The job's folder of unfinished work.
    """

    def __init__(self, writer: ArtifactWriter, work: Path) -> None:
        self._writer = writer
        self._work = work
        self._pool = ThreadPoolExecutor(1, "finish")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits until all is done. Raises what went wrong, unless something else did before."""
        self._pool.shutdown()
        if error is None:
            self._drop(0)

    def finish(self, part: Path, path: Path) -> None:
        """Gives a finished file its name. Raises what went wrong with things given before."""
        self._submit(lambda: self._finish(part, path))

    def save(self, checkpoint: Checkpoint) -> None:
        """Saves a checkpoint as it is now. Raises what went wrong with things given before."""
        content = checkpoint.to_json()
        self._submit(lambda: Checkpoint.write(self._work, content))

    def _finish(self, part: Path, path: Path) -> None:
        replace_durable(part, path)
        # While the system still has its content in memory.
        self._writer.hash_file(path)

    def _submit(self, task: Callable[[], None]) -> None:
        self._drop(_WAITING)
        self._waiting.append(self._pool.submit(task))

    def _drop(self, most: int) -> None:
        while self._waiting and (self._waiting[0].done() or len(self._waiting) > most):
            self._waiting.popleft().result()
