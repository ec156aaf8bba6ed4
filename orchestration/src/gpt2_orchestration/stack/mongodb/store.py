"""Collections in one SQLite file: documents as they came, by the key of their `_id`, and in the order of insertion."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from gpt2_orchestration.stack.mongodb.bounds import KeyRange

_FILE = "documents.sqlite"
_BLOCK_DOCUMENTS = 1000
_BLOCK_BYTES = 4 << 20
_SCHEMA = """
CREATE TABLE IF NOT EXISTS collections (
    number INTEGER PRIMARY KEY, database TEXT NOT NULL, name TEXT NOT NULL, UNIQUE (database, name)
);
CREATE TABLE IF NOT EXISTS indexes (
    collection INTEGER NOT NULL, name TEXT NOT NULL, specification BLOB NOT NULL, PRIMARY KEY (collection, name)
);
"""


class Stored(NamedTuple):
    """A document."""

    key: bytes
    raw: bytes
    """BSON."""


class Store:
    """The documents of all databases. To be used by one thread at a time.

    Args:
        folder: Where the file is.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(folder / _FILE, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.executescript(_SCHEMA)

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commits what is written inside, or takes it back where that fails."""
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def databases(self) -> list[str]:
        """Names of the databases that have a collection."""
        rows = self._database.execute("SELECT DISTINCT database FROM collections ORDER BY database")
        return [name for (name,) in rows]

    def collections(self, database: str) -> list[str]:
        """Names of the collections of a database."""
        rows = self._database.execute("SELECT name FROM collections WHERE database = ? ORDER BY name", (database,))
        return [name for (name,) in rows]

    def find(self, database: str, name: str) -> int | None:
        """The number of a collection; None where there is none."""
        query = "SELECT number FROM collections WHERE database = ? AND name = ?"
        row = self._database.execute(query, (database, name)).fetchone()
        return row[0] if row else None

    def require(self, database: str, name: str) -> int:
        """The number of a collection, which is created where there is none."""
        number = self.find(database, name)
        if number is None:
            inserted = self._database.execute(
                "INSERT INTO collections (database, name) VALUES (?, ?)", (database, name)
            )
            number = int(inserted.lastrowid or 0)
            self._database.execute(f"CREATE TABLE documents_{number} (key BLOB NOT NULL, raw BLOB NOT NULL)")
            self._database.execute(f"CREATE UNIQUE INDEX keys_{number} ON documents_{number} (key)")
        return number

    def drop(self, number: int) -> None:
        """Removes a collection."""
        self._database.execute(f"DROP TABLE documents_{number}")
        self._database.execute("DELETE FROM collections WHERE number = ?", (number,))
        self._database.execute("DELETE FROM indexes WHERE collection = ?", (number,))

    def rename(self, number: int, database: str, name: str) -> None:
        """Gives a collection another name."""
        self._database.execute(
            "UPDATE collections SET database = ?, name = ? WHERE number = ?", (database, name, number)
        )

    def insert(self, number: int, document: Stored) -> bool:
        """Adds a document; False where its key is there already."""
        try:
            self._database.execute(f"INSERT INTO documents_{number} VALUES (?, ?)", document)
        except sqlite3.IntegrityError:
            return False
        return True

    def replace(self, number: int, document: Stored) -> None:
        """Puts a document in the place of that of the same key."""
        self._database.execute(f"UPDATE documents_{number} SET raw = ? WHERE key = ?", (document.raw, document.key))

    def delete(self, number: int, key: bytes) -> None:
        """Removes a document."""
        self._database.execute(f"DELETE FROM documents_{number} WHERE key = ?", (key,))

    def get(self, number: int, key: bytes) -> Stored:
        """The document of a key."""
        query = f"SELECT key, raw FROM documents_{number} WHERE key = ?"
        return Stored(*self._database.execute(query, (key,)).fetchone())

    def count(self, number: int, keys: KeyRange) -> int:
        """Documents in a range."""
        query = f"SELECT count(*) FROM documents_{number} WHERE key >= ? AND key < ?"
        return int(self._database.execute(query, keys).fetchone()[0])

    def scan(self, number: int, keys: KeyRange, *, descending: bool = False) -> Iterator[Stored]:
        """Yields the documents of a range by key, as they are when they are reached."""
        order = "DESC" if descending else "ASC"
        query = f"SELECT key, raw FROM documents_{number} WHERE key >= ? AND key < ? ORDER BY key {order}"
        begin, end = keys
        while block := self._block(query, (begin, end)):
            yield from (Stored(key, raw) for key, raw in block)
            last = block[-1][0]
            begin, end = (begin, last) if descending else (last + b"\0", end)

    def scan_inserted(self, number: int) -> Iterator[Stored]:
        """Yields all documents in the order of insertion."""
        query = f"SELECT key, raw, rowid FROM documents_{number} WHERE rowid > ? ORDER BY rowid"
        last: Any = 0
        while block := self._block(query, (last,)):
            yield from (Stored(key, raw) for key, raw, _ in block)
            last = block[-1][2]

    def add_index(self, number: int, name: str, specification: bytes) -> None:
        """Notes an index."""
        self._database.execute("INSERT OR REPLACE INTO indexes VALUES (?, ?, ?)", (number, name, specification))

    def drop_index(self, number: int, name: str) -> None:
        """Forgets an index."""
        self._database.execute("DELETE FROM indexes WHERE collection = ? AND name = ?", (number, name))

    def indexes(self, number: int) -> list[tuple[str, bytes]]:
        """Names and specifications of the indexes noted."""
        return self._database.execute(
            "SELECT name, specification FROM indexes WHERE collection = ? ORDER BY rowid", (number,)
        ).fetchall()

    def _block(self, query: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
        """The first rows, as many as may be held at once."""
        rows: list[tuple[Any, ...]] = []
        size = 0
        try:
            found = self._database.execute(query, parameters)
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):
                return rows  # The collection was dropped meanwhile.
            raise
        for row in found:
            rows.append(row)
            size += len(row[1])
            if len(rows) == _BLOCK_DOCUMENTS or size >= _BLOCK_BYTES:
                break
        found.close()
        return rows
