"""Writes Parquet shards. The same records give the same bytes, however often the writing was interrupted.

A shard ends with the document that fills it, and so does each row group, so that where they end depends on the
documents alone. Nothing in the files depends on the time or the machine.
"""

from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from gpt2_common.durable import part_of, replace_durable
from gpt2_exporter.corpus.record import Record

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
    ]
)
_ROW_GROUP_BYTES = 8 << 20
_ROW_GROUP_ROWS = 65_536


class ShardWriter:
    """One shard while it is written.

    Args:
        path: Where it will be once it is finished.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = part_of(path)
        self._writer = pq.ParquetWriter(self._part, SCHEMA, compression="zstd", compression_level=3)
        self._rows: list[tuple[str, str, str]] = []
        self._waiting_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def add(self, record: Record, size: int) -> None:
        """Adds a document whose text has `size` bytes of UTF-8."""
        self._rows.append((record.id, record.source, record.text))
        self._waiting_bytes += size
        if self._waiting_bytes >= _ROW_GROUP_BYTES or len(self._rows) >= _ROW_GROUP_ROWS:
            self._write_row_group()

    def finish(self) -> None:
        """Writes what waits, and puts the shard in its place, whole and on the disk."""
        if self._rows:
            self._write_row_group()
        self._writer.close()
        replace_durable(self._part, self._path)

    def _write_row_group(self) -> None:
        columns = [pa.array(column, pa.string()) for column in zip(*self._rows, strict=True)]
        self._writer.write_table(pa.table(columns, schema=SCHEMA), row_group_size=len(self._rows))
        self._rows.clear()
        self._waiting_bytes = 0


def shard_name(index: int) -> str:
    """File name of a shard, from 0."""
    return f"corpus-{index:05d}.parquet"
