"""Streams the documents of a corpus artifact in batches of about 1 MiB, or of one larger document.

In memory are one batch and the compressed texts of one row group. Texts stay in Arrow, to be hashed without a copy.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gpt2_common.artifacts import Artifact
from gpt2_common.errors import DataLoss
from gpt2_contracts.corpus import SHARD_PATTERN, TEXT

_BATCH_BYTES = 1 << 20
_BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Batch:
    """Consecutive documents of a corpus."""

    begin: int
    """Number of the first document in the corpus, from 0."""
    column: pa.Array
    """[documents]: their texts, of Arrow's type string or large_string."""

    def __len__(self) -> int:
        return len(self.column)

    @property
    def texts(self) -> list[str]:
        """The texts."""
        # Arrow would import pandas for it, where that is installed, which takes longer than opening a vocabulary.
        return [str(text, "utf-8") for text in self.encoded()]

    @property
    def size(self) -> int:
        """Bytes of the texts in UTF-8."""
        offsets = self._offsets()
        return int(offsets[-1] - offsets[0])

    def encoded(self) -> Iterator[memoryview]:
        """Yields the UTF-8 of each text, without a copy."""
        data = self.column.buffers()[2]
        view = memoryview(data) if data is not None else memoryview(b"")
        offsets = self._offsets().tolist()
        return (view[begin:end] for begin, end in itertools.pairwise(offsets))

    def only(self, wanted: npt.NDArray[np.bool_]) -> "Batch":
        """Returns the documents of a mask, [documents] bool; `begin` does not number them."""
        return self if wanted.all() else Batch(self.begin, self.column.filter(pa.array(wanted)))

    def _offsets(self) -> npt.NDArray[np.int32] | npt.NDArray[np.int64]:
        kind = np.dtype(np.int64 if pa.types.is_large_string(self.column.type) else np.int32)
        return np.frombuffer(self.column.buffers()[1], kind, len(self.column) + 1, self.column.offset * kind.itemsize)


@dataclass(frozen=True, slots=True)
class RowGroup:
    """A row group of a shard of a corpus."""

    path: Path
    group: int
    begin: int
    """Number of its first document."""
    rows: int


def row_groups(corpus: Artifact) -> list[RowGroup]:
    """Returns the row groups of a corpus in order. Raises DataLoss when a shard is not a Parquet file."""
    found: list[RowGroup] = []
    begin = 0
    for path in sorted(corpus.folder.glob(SHARD_PATTERN)):
        metadata = _metadata(path)
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            found.append(RowGroup(path, group, begin, rows))
            begin += rows
    return found


def text_bytes(corpus: Artifact) -> int:
    """Returns the uncompressed bytes of the texts, slightly over their UTF-8, by metadata. Errors as `row_groups`."""
    shards = map(_metadata, sorted(corpus.folder.glob(SHARD_PATTERN)))
    return sum(_bytes_of_texts(shard, group) for shard in shards for group in range(shard.num_row_groups))


def read_row_group(place: RowGroup) -> Iterator[Batch]:
    """Yields the documents of a row group in batches.

    Raises:
        DataLoss: The file cannot be read, or has no column `text` of strings without nulls.
    """
    yield from _read(place.path, [place])


def read_batches(corpus: Artifact, begin: int = 0) -> Iterator[Batch]:
    """Yields the documents of a corpus in batches, in order. Errors as `read_row_group`.

    Args:
        corpus: The artifact.
        begin: Number of the first document to read. Row groups before it are not read.
    """
    needed = (place for place in row_groups(corpus) if place.begin + place.rows > begin)
    for path, places in groupby(needed, key=lambda place: place.path):
        for batch in _read(path, places):
            if batch.begin + len(batch) > begin:
                skip = max(0, begin - batch.begin)
                yield Batch(batch.begin + skip, batch.column.slice(skip))


def _read(path: Path, places: Iterable[RowGroup]) -> Iterator[Batch]:
    try:
        with pq.ParquetFile(path, pre_buffer=False) as shard:
            for place in places:
                yield from _batches(shard, place)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise _unreadable(path, error) from error


def _batches(shard: pq.ParquetFile, place: RowGroup) -> Iterator[Batch]:
    if TEXT not in shard.schema_arrow.names:
        raise KeyError(f"it has no column {TEXT}")
    mean = max(1, _bytes_of_texts(shard.metadata, place.group) // max(1, place.rows))
    rows = min(_BATCH_ROWS, max(1, _BATCH_BYTES // mean))
    begin = place.begin
    for batch in shard.iter_batches(batch_size=rows, row_groups=[place.group], columns=[TEXT], use_threads=False):
        texts = batch.column(TEXT)
        if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
            # Only where needed: the first cast of a process takes 0.1 s, in which Arrow registers its functions.
            texts = texts.cast(pa.large_string())
        if texts.null_count:
            raise KeyError(f"its column {TEXT} has nulls")
        yield Batch(begin, texts)
        begin += len(texts)


def _metadata(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _bytes_of_texts(metadata: pq.FileMetaData, group: int) -> int:
    row_group = metadata.row_group(group)
    columns = (row_group.column(index) for index in range(row_group.num_columns))
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == TEXT)


def _unreadable(path: Path, error: Exception) -> DataLoss:
    return DataLoss(f"{path} cannot be read ({error}): make the corpus again")
