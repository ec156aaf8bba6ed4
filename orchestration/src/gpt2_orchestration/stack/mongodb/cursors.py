"""Cursors: results that are sent batch by batch."""

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any

import bson
from bson.int64 import Int64
from bson.raw_bson import RawBSONDocument

from gpt2_orchestration.stack.mongodb.errors import CURSOR_NOT_FOUND, CommandError
from gpt2_orchestration.stack.mongodb.wire import CODEC

FIRST_BATCH = 101
_BATCH_BYTES = 16 << 20


class Cursors:
    """The cursors that have not ended."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self._open: dict[int, _Cursor] = {}

    def first(self, namespace: str, documents: Iterable[Any], size: int, *, only: bool = False) -> dict[str, Any]:
        """The answer with the first batch of at most so many documents; without a cursor where there is one `only`."""
        return {
            "cursor": self._batch("firstBatch", next(self._numbers), _Cursor(namespace, iter(documents)), size, only)
        }

    def more(self, number: int, size: int) -> dict[str, Any]:
        """The answer with the next batch. Raises CommandError where there is no such cursor."""
        cursor = self._open.pop(number, None)
        if cursor is None:
            raise CommandError(f"cursor id {number} not found", CURSOR_NOT_FOUND)
        return {"cursor": self._batch("nextBatch", number, cursor, size, False)}

    def kill(self, numbers: Iterable[int]) -> dict[str, Any]:
        """Ends cursors."""
        numbers = list(numbers)
        killed = [number for number in numbers if self._open.pop(number, None) is not None]
        unknown = [number for number in numbers if number not in killed]
        return {"cursorsKilled": killed, "cursorsNotFound": unknown, "cursorsAlive": [], "cursorsUnknown": []}

    def _batch(self, name: str, number: int, cursor: "_Cursor", size: int, only: bool) -> dict[str, Any]:
        batch = cursor.take(size)
        is_open = not only and not cursor.has_ended()
        if is_open:
            self._open[number] = cursor
        return {"id": Int64(number if is_open else 0), "ns": cursor.namespace, name: batch}


class _Cursor:
    def __init__(self, namespace: str, documents: Iterator[Any]) -> None:
        self.namespace = namespace
        self._documents = documents
        self._waiting: list[bytes] = []

    def take(self, size: int) -> list[RawBSONDocument]:
        batch: list[RawBSONDocument] = []
        held = 0
        while len(batch) < size and not self.has_ended():
            if batch and held + len(self._waiting[0]) > _BATCH_BYTES:
                break
            raw = self._waiting.pop()
            held += len(raw)
            batch.append(RawBSONDocument(raw))
        return batch

    def has_ended(self) -> bool:
        if not self._waiting:
            for document in self._documents:
                raw = document if isinstance(document, bytes) else bson.encode(document, codec_options=CODEC)
                self._waiting.append(raw)
                break
        return not self._waiting
