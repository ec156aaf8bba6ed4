"""Streams the documents of a corpus artifact.

No more of it is in memory than the stored texts of a row group, and a batch of 1 MiB or one document.

A batch keeps its texts as Arrow has read them, so that they can be hashed without a copy.
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

_TEXT = "text"
_BATCH_BYTES = 1 << 20
_BATCH_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents that follow one another."""

    begin: int
    """Number of the first one in the corpus, from 0."""
    column: pa.Array
    """Their texts, of Arrow's type string or large_string."""

    def __len__(self) -> int:
        return len(self.column)

    @property
    def texts(self) -> list[str]:
        """The texts."""
        # Arrow would import pandas for it, where that is installed, which takes longer than opening a vocabulary.
        return [str(text, "utf-8") for text in self.encoded()]

    @property
    def size(self) -> int:
        """Bytes of the texts' UTF-8."""
        offsets = self._offsets()
        return int(offsets[-1] - offsets[0])

    def encoded(self) -> Iterator[memoryview]:
        """Yields the UTF-8 of each text, in place."""
        data = self.column.buffers()[2]
        view = memoryview(data) if data is not None else memoryview(b"")
        offsets = self._offsets().tolist()
        return (view[begin:end] for begin, end in itertools.pairwise(offsets))

    def only(self, wanted: npt.NDArray[np.bool_]) -> "Batch":
        """The documents of a mask. They keep no numbers of their own."""
        return self if wanted.all() else Batch(self.begin, self.column.filter(pa.array(wanted)))

    def _offsets(self) -> npt.NDArray[np.int32] | npt.NDArray[np.int64]:
        kind = np.dtype(np.int64 if pa.types.is_large_string(self.column.type) else np.int32)
        return np.frombuffer(self.column.buffers()[1], kind, len(self.column) + 1, self.column.offset * kind.itemsize)


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Where some documents of a corpus are: a row group of one of its files."""

    path: Path
    group: int
    begin: int
    """Number of its first document."""
    rows: int


def row_groups(corpus: Artifact) -> list[RowGroup]:
    """The row groups of a corpus, in order. Raises DataLoss when a shard is no Parquet file."""
    found: list[RowGroup] = []
    begin = 0
    for path in sorted(corpus.folder.glob("corpus-*.parquet")):
        metadata = _metadata(path)
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            found.append(RowGroup(path, group, begin, rows))
            begin += rows
    return found


def text_bytes(corpus: Artifact) -> int:
    """Bytes of the corpus' texts by its files' own account: a little more than their UTF-8. Errors as `row_groups`."""
    shards = map(_metadata, sorted(corpus.folder.glob("corpus-*.parquet")))
    return sum(_bytes_of_texts(shard, group) for shard in shards for group in range(shard.num_row_groups))


def read_row_group(place: RowGroup) -> Iterator[Batch]:
    """Yields the documents of a row group in batches.

    Raises:
        DataLoss: It cannot be read, or has no column `text` of strings without nulls.
    """
    yield from _read(place.path, [place])


def read_batches(corpus: Artifact, begin: int = 0) -> Iterator[Batch]:
    """Yields the documents of a corpus in batches, in its order.

    Args:
        corpus: The artifact.
        begin: Number of the first document wanted. Row groups before it are skipped without being read.
    """
    needed = (place for place in row_groups(corpus) if place.begin + place.rows > begin)
    for path, places in groupby(needed, key=lambda place: place.path):
        for batch in _read(path, places):
            if batch.begin + len(batch) > begin:
                skip = max(0, begin - batch.begin)
                yield Batch(batch.begin + skip, batch.column.slice(skip))


def read_documents(corpus: Artifact) -> Iterator[tuple[int, str]]:
    """Yields the number and the text of each document, in the corpus' order. Errors as `read_row_group`."""
    for batch in read_batches(corpus):
        yield from enumerate(batch.texts, start=batch.begin)


def _read(path: Path, places: Iterable[RowGroup]) -> Iterator[Batch]:
    try:
        with pq.ParquetFile(path, pre_buffer=False) as shard:
            for place in places:
                yield from _batches(shard, place)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise _unreadable(path, error) from error


def _batches(shard: pq.ParquetFile, place: RowGroup) -> Iterator[Batch]:
    if _TEXT not in shard.schema_arrow.names:
        raise KeyError(f"it has no column {_TEXT}")
    mean = max(1, _bytes_of_texts(shard.metadata, place.group) // max(1, place.rows))
    rows = min(_BATCH_ROWS, max(1, _BATCH_BYTES // mean))
    begin = place.begin
    for batch in shard.iter_batches(batch_size=rows, row_groups=[place.group], columns=[_TEXT], use_threads=False):
        texts = batch.column(_TEXT)
        if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
            # Only here: a process' first cast takes an eighth of a second, as Arrow then describes all its functions.
            texts = texts.cast(pa.large_string())
        if texts.null_count:
            raise KeyError(f"its column {_TEXT} has nulls")
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
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema == _TEXT)


def _unreadable(path: Path, error: Exception) -> DataLoss:
    return DataLoss(f"{path} cannot be read ({error}): make the corpus again")
