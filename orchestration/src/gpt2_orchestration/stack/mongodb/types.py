"""The types of BSON by their names and numbers, for `$type`."""

from typing import Any

from bson import Regex
from bson.binary import Binary
from bson.code import Code
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef
from bson.decimal128 import Decimal128
from bson.int64 import Int64
from bson.max_key import MaxKey
from bson.min_key import MinKey
from bson.objectid import ObjectId
from bson.timestamp import Timestamp

from gpt2_orchestration.stack.mongodb.errors import CommandError

_CODES: dict[str, tuple[int, ...]] = {
    "double": (1,), "string": (2,), "object": (3,), "array": (4,), "binData": (5,), "objectId": (7,), "bool": (8,),
    "date": (9,), "null": (10,), "regex": (11,), "javascript": (13,), "int": (16,), "timestamp": (17,), "long": (18,),
    "decimal": (19,), "minKey": (-1,), "maxKey": (127,), "number": (1, 16, 18, 19),
}  # fmt: skip
_TYPES: tuple[tuple[type, int], ...] = (
    (bool, 8),
    (Int64, 18),
    (int, 16),
    (float, 1),
    (Code, 13),
    (str, 2),
    (dict, 3),
    (DBRef, 3),
    (list, 4),
    (bytes, 5),
    (Binary, 5),
    (ObjectId, 7),
    (DatetimeMS, 9),
    (type(None), 10),
    (Regex, 11),
    (Timestamp, 17),
    (Decimal128, 19),
    (MinKey, -1),
    (MaxKey, 127),
)


def type_codes(operand: Any) -> frozenset[int]:
    """The numbers of the types that an operand of `$type` names. Raises CommandError."""
    codes: set[int] = set()
    for item in operand if isinstance(operand, list) else [operand]:
        named = _CODES.get(item) if isinstance(item, str) else (int(item),)
        if named is None:
            raise CommandError(f"Unknown type name alias: {item}")
        codes.update(named)
    return frozenset(codes)


def has_type(value: Any, codes: frozenset[int]) -> bool:
    """Whether a value is of one of the types."""
    return next((code for kind, code in _TYPES if isinstance(value, kind)), None) in codes
