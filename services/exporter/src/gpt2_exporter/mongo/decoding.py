"""Decodes raw batches of documents into ids and texts; a broken document does not affect the others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import bson
import pyarrow as pa
from bson.errors import InvalidBSON

from gpt2_common.errors import DataLoss
from gpt2_exporter.mongo.identifiers import CODEC, id_text
from gpt2_exporter.mongo.plain_documents import read_plain
from gpt2_exporter.mongo.text import TextRule
from gpt2_exporter.rejects import reasons

_LENIENT = CODEC.with_options(unicode_decode_error_handler="surrogateescape")
_MIN_DOCUMENT_BYTES = 5
# Bytes of a value by its type in BSON (https://bsonspec.org); a string and binary data begin with their length.
_FIXED_BYTES = {0x01: 8, 0x07: 12, 0x08: 1, 0x09: 8, 0x0A: 0, 0x10: 4, 0x11: 8, 0x12: 8, 0x13: 16, 0x7F: 0, 0xFF: 0}
_BYTES_BESIDE_LENGTH = {0x02: 4, 0x03: 0, 0x05: 5}
_ID_HEADER = b"_id\0"


_Strings: TypeAlias = Sequence[str] | pa.StringArray


@dataclass(frozen=True, slots=True)
class Documents:
    """The documents of a raw batch."""

    ids: Sequence[Any]
    """Their `_id`s."""
    id_texts: _Strings
    """The same as text."""
    texts: _Strings
    """Their texts; empty for the rejected ones."""
    rejects: dict[int, str]
    """Reason of each unusable document, by index."""

    def first(self, count: int) -> "Documents":
        """Returns so many of them, from the first one; all where there are fewer."""
        if count >= len(self.ids):
            return self
        rejects = {index: reason for index, reason in self.rejects.items() if index < count}
        return Documents(self.ids[:count], self.id_texts[:count], self.texts[:count], rejects)


def decode_documents(raw: bytes, rule: TextRule) -> Documents:
    """Decodes a raw batch: without objects of Python where `read_plain` can, one document after another elsewhere.

    Args:
        raw: Documents of BSON, one after another.
        rule: How their texts are found.

    Raises:
        DataLoss: As `decode_batch`.
    """
    plain = read_plain(raw, rule.plain_field) if rule.plain_field else None
    if plain is not None:
        return Documents(*plain, {})
    ids: list[Any] = []
    texts: list[str] = []
    rejects: dict[int, str] = {}
    for document, broken in decode_batch(raw):
        text, reason = ("", broken) if broken else rule.read(document)
        if reason:
            rejects[len(ids)] = reason
        ids.append(document["_id"])
        texts.append(text)
    return Documents(ids, [id_text(identifier) for identifier in ids], texts, rejects)


def decode_batch(batch: bytes) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields each document of a raw batch, with the reason why it is unusable; empty when it is valid.

    A document with an invalid string keeps its other fields, one of invalid BSON only its `_id`.

    Raises:
        DataLoss: The bytes are not documents, or one has no `_id` that reading could resume after.
    """
    try:
        documents = bson.decode_all(batch, CODEC)
    except InvalidBSON:
        yield from _decode_one_by_one(batch)
    else:
        yield from ((document, "") for document in documents)


def last_document(batch: bytes) -> dict[str, Any]:
    """Returns the last document of a raw batch that is not empty. Raises DataLoss as `decode_batch`."""
    begin = 0
    while begin + (size := int.from_bytes(batch[begin : begin + 4], "little")) < len(batch):
        if size < _MIN_DOCUMENT_BYTES:
            break
        begin += size
    [(document, _)] = decode_batch(batch[begin:])
    return document


def _decode_one_by_one(batch: bytes) -> Iterator[tuple[dict[str, Any], str]]:
    begin = 0
    while begin < len(batch):
        size = int.from_bytes(batch[begin : begin + 4], "little")
        if not _MIN_DOCUMENT_BYTES <= size <= len(batch) - begin:
            raise DataLoss("MongoDB sent invalid BSON (a document has a wrong size): validate the collection")
        raw = batch[begin : begin + size]
        begin += size
        try:
            yield bson.decode(raw, CODEC), ""
        except InvalidBSON:
            yield _decode_broken(raw)


def _decode_broken(raw: bytes) -> tuple[dict[str, Any], str]:
    reason = reasons.BROKEN_TEXT
    try:
        try:
            document: dict[str, Any] = bson.decode(raw, _LENIENT)
        except InvalidBSON:
            reason = reasons.BROKEN_BSON
            document = bson.decode(_id_alone(raw), _LENIENT)
        id_text(document["_id"]).encode()
    except (InvalidBSON, KeyError) as error:
        raise DataLoss(f"MongoDB sent a document of invalid BSON ({error}): validate the collection") from error
    except UnicodeEncodeError as error:
        # Reading could not resume after it: no query can contain it.
        raise DataLoss(f"a document's _id is broken UTF-8 ({document['_id']!r}): give it another _id") from error
    return document, reason


def _id_alone(raw: bytes) -> bytes:
    """Returns the document reduced to its `_id`, where that is the first field, as MongoDB stores it."""
    kind, value = raw[4], 5 + len(_ID_HEADER)
    if raw[5:value] != _ID_HEADER:
        return b""
    if kind in _BYTES_BESIDE_LENGTH:
        size = _BYTES_BESIDE_LENGTH[kind] + int.from_bytes(raw[value : value + 4], "little")
    else:
        size = _FIXED_BYTES.get(kind, len(raw))
    element = raw[4 : value + size]
    return (len(element) + 5).to_bytes(4, "little") + element + b"\0"
