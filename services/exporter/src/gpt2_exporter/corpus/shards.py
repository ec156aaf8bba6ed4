"""Writes Parquet shards. The same documents give the same bytes, however often the writing was interrupted.

A shard ends with the document that fills it, and so does each row group, so that where they end depends on the
documents alone. Nothing in the files depends on the time or the machine.

The files are written on a thread of their own: Arrow compresses without holding Python's lock.
"""

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from gpt2_common.durable import part_of, replace_durable

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
    ]
)
_WAITING = 2


class ShardWriter:
    """Writes one shard after another, in the background."""

    def __init__(self) -> None:
        self._tasks: queue.Queue[Callable[[], None] | None] = queue.Queue(_WAITING)
        self._error: BaseException | None = None
        self._part: Path | None = None
        self._writer: pq.ParquetWriter | None = None
        self._thread = threading.Thread(target=self._work, name="shard-writer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits until everything is written. Raises what went wrong, unless something else did before."""
        self._tasks.put(None)
        self._thread.join()
        if self._writer is not None:
            self._writer.close()
        if error is None:
            self._raise()

    def write(self, path: Path, row_group: pa.Table) -> None:
        """Appends a row group to the shard that will be at a path."""
        self._submit(lambda: self._write(path, row_group))

    def finish(self, path: Path, then: Callable[[], None]) -> None:
        """Puts a shard in its place, whole and on the disk, and calls a function after that."""
        self._submit(lambda: self._finish(path, then))

    def _submit(self, task: Callable[[], None]) -> None:
        self._raise()
        self._tasks.put(task)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            if self._error is None:
                try:
                    task()
                except BaseException as error:  # noqa: BLE001 - the thread that writes into the queue raises it
                    self._error = error

    def _write(self, path: Path, row_group: pa.Table) -> None:
        if self._writer is None:
            self._part = part_of(path)
            # Only `source` repeats itself; a dictionary of the others would be built to be thrown away.
            self._writer = pq.ParquetWriter(
                self._part, SCHEMA, compression="zstd", compression_level=1, use_dictionary=["source"]
            )
        # One chunk a column: where pages end must not depend on how the documents came in.
        self._writer.write_table(row_group.combine_chunks(), row_group_size=max(1, row_group.num_rows))

    def _finish(self, path: Path, then: Callable[[], None]) -> None:
        if self._writer is None or self._part is None:
            raise RuntimeError("a shard without a row group")
        self._writer.close()
        self._writer = None
        replace_durable(self._part, path)
        then()


def shard_name(index: int) -> str:
    """File name of a shard, from 0."""
    return f"corpus-{index:05d}.parquet"
