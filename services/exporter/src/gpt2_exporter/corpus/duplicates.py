"""Finds texts that were there before, in flat memory: their digests are kept in a file, not the texts.

Two texts are taken for the same when 128 bits of their BLAKE2b digests are: for a billion documents the chance that two
different ones are is below 1e-20. The file outlives the process; what it holds of documents after the last checkpoint
is removed when reading is taken up again.
"""

import hashlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

_FILE = "seen.sqlite"
_DIGEST_BYTES = 16
_CACHE_KIB = 64 << 10
_LOOKED_UP_AT_ONCE = 1000


class SeenTexts:
    """The digests of the texts accepted so far.

    Args:
        work: The job's folder of unfinished work.
        documents: Documents that the last checkpoint holds.
    """

    def __init__(self, work: Path, documents: int) -> None:
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

    def add(self, texts: pa.Array, positions: Sequence[int], documents: int) -> list[int]:
        """Adds the texts at some positions, the first of them as the document of number `documents`.

        Returns:
            The positions of those that were there already; these are not added.
        """
        duplicates: list[int] = []
        for begin in range(0, len(positions), _LOOKED_UP_AT_ONCE):
            part = positions[begin : begin + _LOOKED_UP_AT_ONCE]
            digests = [_digest(texts[position].as_buffer()) for position in part]
            marks = ",".join("?" * len(digests))
            known = {
                row[0] for row in self._database.execute(f"SELECT digest FROM seen WHERE digest IN ({marks})", digests)
            }
            new: list[tuple[bytes, int]] = []
            for position, digest in zip(part, digests, strict=True):
                if digest in known:
                    duplicates.append(position)
                else:
                    known.add(digest)
                    new.append((digest, documents + len(new)))
            documents += len(new)
            self._database.executemany("INSERT INTO seen VALUES (?, ?)", new)
        return duplicates

    def save(self) -> None:
        """Puts on the disk what was added. To be called before the checkpoint that counts on it."""
        self._database.execute("COMMIT")
        self._database.execute("BEGIN")


def _digest(text: pa.Buffer) -> bytes:
    return hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest()
