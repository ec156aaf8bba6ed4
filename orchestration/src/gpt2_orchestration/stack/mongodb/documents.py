"""Documents as they are stored: BSON that begins with an `_id`, and the key of that."""

from typing import Any

import bson
from bson import Regex
from bson.errors import BSONError
from bson.objectid import ObjectId

from gpt2_orchestration.stack.mongodb.errors import DOCUMENT_TOO_LARGE, CommandError
from gpt2_orchestration.stack.mongodb.order import sort_key
from gpt2_orchestration.stack.mongodb.store import Stored
from gpt2_orchestration.stack.mongodb.wire import CODEC

LARGEST_DOCUMENT = 16 << 20
_INVALID_ID = 53
_INVALID_BSON = 22
_DOLLAR_PREFIXED = 52


def to_stored(raw: bytes) -> Stored:
    """A document to be inserted; one without an `_id` gets one. Raises CommandError where it cannot be stored."""
    try:
        document = bson.decode(raw, CODEC)
    except BSONError as error:
        raise CommandError(f"invalid BSON: {error}", _INVALID_BSON) from error
    if next(iter(document), None) == "_id":
        return Stored(_checked_key(document["_id"]), _checked_size(raw))
    return from_document(document)


def from_document(document: dict[str, Any]) -> Stored:
    """As `to_stored`, from a decoded document."""
    identifier = document["_id"] if "_id" in document else ObjectId()
    rest = {name: value for name, value in document.items() if name != "_id"}
    return Stored(
        _checked_key(identifier), _checked_size(bson.encode({"_id": identifier, **rest}, codec_options=CODEC))
    )


def to_document(raw: bytes) -> dict[str, Any]:
    """A stored document, decoded."""
    document: dict[str, Any] = bson.decode(raw, CODEC)
    return document


def _checked_key(identifier: Any) -> bytes:
    if isinstance(identifier, list | Regex):
        raise CommandError(
            f"The '_id' value cannot be of type {'array' if isinstance(identifier, list) else 'regex'}", _INVALID_ID
        )
    if isinstance(identifier, dict) and any(name.startswith("$") for name in identifier):
        raise CommandError("_id fields may not contain '$'-prefixed fields", _DOLLAR_PREFIXED)
    return sort_key(identifier)


def _checked_size(raw: bytes) -> bytes:
    if len(raw) > LARGEST_DOCUMENT:
        raise CommandError(
            f"object to insert too large: {len(raw)} bytes, at most {LARGEST_DOCUMENT}", DOCUMENT_TOO_LARGE
        )
    return raw
