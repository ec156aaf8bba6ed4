"""Decodes raw batches of documents; one that is broken does not spoil the others."""

from collections.abc import Iterator
from typing import Any

import bson
from bson.errors import InvalidBSON

from gpt2_common.errors import DataLoss
from gpt2_exporter.corpus.record import BROKEN_BSON, BROKEN_TEXT
from gpt2_exporter.mongo.document_id import id_text
from gpt2_exporter.mongo.identifier import CODEC

_LENIENT = CODEC.with_options(unicode_decode_error_handler="surrogateescape")
_LEAST_DOCUMENT = 5
# Bytes of a value by its type in BSON (https://bsonspec.org); a string and binary data begin with their length.
_FIXED_BYTES = {0x01: 8, 0x07: 12, 0x08: 1, 0x09: 8, 0x0A: 0, 0x10: 4, 0x11: 8, 0x12: 8, 0x13: 16, 0x7F: 0, 0xFF: 0}
_BYTES_BESIDE_LENGTH = {0x02: 4, 0x03: 0, 0x05: 5}
_ID_HEADER = b"_id\0"


def decode_batch(batch: bytes) -> Iterator[tuple[dict[str, Any], str]]:
    """Decodes the documents of a raw batch, each with why it is unusable; that is empty when it is sound.

    A document with a broken string keeps its other fields, one that is no BSON its `_id` alone.

    Raises:
        DataLoss: The bytes are no documents at all, or one has no `_id` that reading could go on after.
    """
    try:
        documents = bson.decode_all(batch, CODEC)
    except InvalidBSON:
        yield from _decode_one_by_one(batch)
    else:
        yield from ((document, "") for document in documents)


def last_document(batch: bytes) -> dict[str, Any]:
    """The last document of a raw batch that is not empty, as `decode_batch` gives it. Raises DataLoss as it does."""
    begin = 0
    while begin + (size := int.from_bytes(batch[begin : begin + 4], "little")) < len(batch):
        if size < _LEAST_DOCUMENT:
            break
        begin += size
    [(document, _)] = decode_batch(batch[begin:])
    return document


def _decode_one_by_one(batch: bytes) -> Iterator[tuple[dict[str, Any], str]]:
    begin = 0
    while begin < len(batch):
        size = int.from_bytes(batch[begin : begin + 4], "little")
        if not _LEAST_DOCUMENT <= size <= len(batch) - begin:
            raise DataLoss("MongoDB sent what is no BSON (a document's size is wrong): validate the collection")
        raw = batch[begin : begin + size]
        begin += size
        try:
            yield bson.decode(raw, CODEC), ""
        except InvalidBSON:
            yield _decode_broken(raw)


def _decode_broken(raw: bytes) -> tuple[dict[str, Any], str]:
    reason = BROKEN_TEXT
    try:
        try:
            document: dict[str, Any] = bson.decode(raw, _LENIENT)
        except InvalidBSON:
            reason = BROKEN_BSON
            document = bson.decode(_id_alone(raw), _LENIENT)
        id_text(document["_id"]).encode()
    except (InvalidBSON, KeyError) as error:
        raise DataLoss(f"MongoDB sent a document that is no BSON ({error}): validate the collection") from error
    except UnicodeEncodeError as error:
        # Reading could not go on after it: the query that says so cannot be written.
        raise DataLoss(f"a document's _id is broken UTF-8 ({document['_id']!r}): give it another _id") from error
    return document, reason


def _id_alone(raw: bytes) -> bytes:
    """A document of the `_id` alone, where that is the first field, as it is in what MongoDB stores."""
    kind, value = raw[4], 5 + len(_ID_HEADER)
    if raw[5:value] != _ID_HEADER:
        return b""
    if kind in _BYTES_BESIDE_LENGTH:
        size = _BYTES_BESIDE_LENGTH[kind] + int.from_bytes(raw[value : value + 4], "little")
    else:
        size = _FIXED_BYTES.get(kind, len(raw))
    element = raw[4 : value + size]
    return (len(element) + 5).to_bytes(4, "little") + element + b"\0"
