"""Cuts prepared documents into row groups and shards, and writes them as Parquet in the background.

The document that fills a row group or a shard is the last one in it. So the documents alone determine the bytes of the
files, however they are batched and however often the export is interrupted.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gpt2_common.background import BackgroundTasks
from gpt2_common.durable import part_of, replace_durable
from gpt2_contracts.corpus import COLUMNS, SOURCE, shard_name
from gpt2_exporter.corpus.arrays import string_array
from gpt2_exporter.corpus.preparation import PreparedBatch

SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in COLUMNS])
_ROW_GROUP_BYTES = 8 << 20
_ROW_GROUP_ROWS = 65_536
_MAX_WAITING = 2


@dataclass(frozen=True, slots=True)
class ShardPart:
    """Documents of one batch that belong to the same row group."""

    documents: PreparedBatch
    ends_row_group: bool
    ends_shard: bool


def cut_into_shards(batches: Iterable[PreparedBatch], shard_bytes: int) -> Iterator[ShardPart]:
    """Yields the documents in parts, with a mark on those that end a row group or a shard.

    Args:
        batches: The documents.
        shard_bytes: Bytes of text, from 1, that fill a shard.
    """
    group_rows = group_bytes = written = 0
    for batch in batches:
        ends = np.cumsum(batch.sizes)
        begin = position = 0
        while begin < len(ends):
            before = int(ends[begin - 1]) if begin else 0
            room = min(shard_bytes - written, _ROW_GROUP_BYTES - group_bytes)
            full = int(np.searchsorted(ends, before + room)) + 1
            end = min(len(ends), full, begin + _ROW_GROUP_ROWS - group_rows)
            size = int(ends[end - 1]) - before
            group_rows, group_bytes, written = group_rows + end - begin, group_bytes + size, written + size
            ends_shard = written >= shard_bytes
            ends_row_group = ends_shard or group_bytes >= _ROW_GROUP_BYTES or group_rows >= _ROW_GROUP_ROWS
            # What is left out after the last document of a batch is not part of a shard that this document ends.
            is_rest = end == len(ends) and not ends_shard
            after = batch.end if is_rest else int(batch.positions[end - 1]) + 1
            yield ShardPart(batch.slice(slice(begin, end), position, after), ends_row_group, ends_shard)
            group_rows, group_bytes = (0, 0) if ends_row_group else (group_rows, group_bytes)
            written = 0 if ends_shard else written
            begin, position = end, after
        if position < batch.end:
            yield ShardPart(batch.slice(slice(begin, begin), position, batch.end), False, False)


class ShardWriter:
    """Writes one shard after another, on a background thread: Arrow compresses without Python's lock.

    Args:
        folder: Folder of the shards.
        shards: Number of shards in it.
    """

    def __init__(self, folder: Path, shards: int) -> None:
        self.shards = shards
        self._folder = folder
        self._row_group: list[pa.Table] = []
        self._is_empty = True
        self._tasks = BackgroundTasks("shard-writer", _MAX_WAITING)
        self._file: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        self._tasks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits until everything is written. Errors as `BackgroundTasks.__exit__`."""
        try:
            self._tasks.__exit__(kind, error, trace)
        finally:
            if self._file is not None:
                self._file.close()

    @property
    def is_empty(self) -> bool:
        """Whether the current shard has no document yet."""
        return self._is_empty

    def write(self, part: ShardPart) -> None:
        """Appends documents to the current shard."""
        batch = part.documents
        if len(batch.ids):
            source = pa.repeat(string_array([batch.source])[0], len(batch.ids))
            self._row_group.append(pa.Table.from_arrays([batch.ids, source, batch.texts], schema=SCHEMA))
            self._is_empty = False
        if part.ends_row_group:
            self._end_row_group()

    def finish_shard(self, then: Callable[[], None]) -> None:
        """Ends the current shard, and calls a function on the background thread once it is whole and on the disk."""
        self._end_row_group()
        path = self._path
        self._tasks.submit(lambda: self._finish(path, then))
        self.shards += 1
        self._is_empty = True

    def _end_row_group(self) -> None:
        if self._row_group:
            path, row_group = self._path, pa.concat_tables(self._row_group)
            self._tasks.submit(lambda: self._write(path, row_group))
            self._row_group = []

    def _write(self, path: Path, row_group: pa.Table) -> None:
        if self._file is None:
            # Only the source repeats; dictionaries of the other columns would be built only to be discarded.
            self._file = pq.ParquetWriter(
                part_of(path), SCHEMA, compression="zstd", compression_level=1, use_dictionary=[SOURCE]
            )
        # One chunk per column: the ends of pages must not depend on how the documents are batched.
        self._file.write_table(row_group.combine_chunks(), row_group_size=max(1, row_group.num_rows))

    def _finish(self, path: Path, then: Callable[[], None]) -> None:
        if self._file is None:
            raise RuntimeError("a shard without a row group")
        self._file.close()
        self._file = None
        replace_durable(part_of(path), path)
        then()

    @property
    def _path(self) -> Path:
        return self._folder / shard_name(self.shards)
