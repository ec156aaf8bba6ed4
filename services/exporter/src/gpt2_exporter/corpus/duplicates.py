"""Drops documents whose text occurred before, in flat memory: a file keeps the digests of the texts.

Two texts are equal when 128 bits of their BLAKE2b digests (RFC 7693) are: for a billion documents a collision is less
likely than 1e-20. The file outlives the process; a new attempt deletes what is newer than its resume point.
"""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from gpt2_exporter.corpus.preparation import PreparedBatch
from gpt2_exporter.rejects import reasons

_FILE = "seen.sqlite"
_DIGEST_BYTES = 16
_CACHE_KIB = 64 << 10
_TEXTS_PER_QUERY = 1000


class SeenTexts:
    """Digests of the texts accepted so far.

    Args:
        work: The job's folder of unfinished work.
        documents: Documents in the last resume point.
    """

    def __init__(self, work: Path, documents: int) -> None:
        self._documents = documents
        self._database = sqlite3.connect(work / _FILE, isolation_level=None)
        self._database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS seen (digest BLOB PRIMARY KEY, document INTEGER NOT NULL) WITHOUT ROWID"
        )
        self._database.execute("DELETE FROM seen WHERE document >= ?", (documents,))
        self._database.execute("BEGIN")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def add(self, texts: pa.StringArray) -> list[int]:
        """Adds the texts that are new. Returns the indices of the others."""
        duplicates: list[int] = []
        for begin in range(0, len(texts), _TEXTS_PER_QUERY):
            digests = [_digest(text.as_buffer()) for text in texts[begin : begin + _TEXTS_PER_QUERY]]
            marks = ",".join("?" * len(digests))
            known = {
                row[0] for row in self._database.execute(f"SELECT digest FROM seen WHERE digest IN ({marks})", digests)
            }
            new: list[tuple[bytes, int]] = []
            for index, digest in enumerate(digests, begin):
                if digest in known:
                    duplicates.append(index)
                else:
                    known.add(digest)
                    new.append((digest, self._documents + len(new)))
            self._documents += len(new)
            self._database.executemany("INSERT INTO seen VALUES (?, ?)", new)
        return duplicates

    def save(self) -> None:
        """Commits what was added; to be called before the resume point that relies on it."""
        self._database.execute("COMMIT")
        self._database.execute("BEGIN")


def drop_duplicates(batches: Iterable[PreparedBatch], seen: SeenTexts) -> Iterator[PreparedBatch]:
    """Yields each batch without the documents whose text occurred before; the first of equal texts stays."""
    for batch in batches:
        yield batch.without(seen.add(batch.texts), reasons.DUPLICATE)


def _digest(text: pa.Buffer) -> bytes:
    return hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest()
