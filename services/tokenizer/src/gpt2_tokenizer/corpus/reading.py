"""Streams the documents of a corpus artifact; never more of it is in memory than one row group."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from gpt2_common.artifacts import Artifact
from gpt2_common.errors import DataLoss

_TEXT = "text"
_BATCH_ROWS = 256


def read_documents(corpus: Artifact, begin: int = 0) -> Iterator[tuple[int, str]]:
    """Yields the number and the text of each document, in the corpus' order.

    Args:
        corpus: The artifact.
        begin: Number of the first document wanted, from 0. Those before are skipped without being read where a whole
            row group of them is.

    Raises:
        DataLoss: A shard is no Parquet file with a column `text` of strings.
    """
    number = 0
    for path in sorted(corpus.folder.glob("corpus-*.parquet")):
        try:
            with pq.ParquetFile(path) as shard:
                for group in range(shard.num_row_groups):
                    rows = shard.metadata.row_group(group).num_rows
                    if number + rows > begin:
                        yield from _from(begin, enumerate(_texts(shard, group), start=number))
                    number += rows
        except (pa.ArrowException, OSError, KeyError) as error:
            raise DataLoss(f"{corpus.uri}/{path.name} cannot be read ({error}): make the corpus again") from error


def _from(begin: int, documents: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    return (document for document in documents if document[0] >= begin)


def _texts(shard: pq.ParquetFile, group: int) -> Iterator[str]:
    for batch in shard.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=[_TEXT]):
        yield from batch.column(_TEXT).to_pylist()
