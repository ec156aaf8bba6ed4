"""The order of BSON values, as bytes that sort as MongoDB sorts the values: the key of `_id`, and of every comparison.

Equal keys mean equal values: numbers of all types by their exact value. The order of types and the rules within them:
https://www.mongodb.com/docs/manual/reference/bson-type-comparison-order/
"""

import math
import struct
from decimal import Decimal
from typing import Any

from bson import Regex
from bson.binary import Binary
from bson.code import Code
from bson.datetime_ms import DatetimeMS
from bson.dbref import DBRef
from bson.decimal128 import Decimal128
from bson.max_key import MaxKey
from bson.min_key import MinKey
from bson.objectid import ObjectId
from bson.timestamp import Timestamp

from gpt2_orchestration.stack.mongodb.errors import unsupported

LEAST, NUMBER, ARRAY, GREATEST = 1, 10, 25, 127
NOT_A_NUMBER = b"\0"
_MINUS_INFINITY, _NEGATIVE, _ZERO, _POSITIVE, _INFINITY = b"\1", b"\2", b"\3", b"\4", b"\5"
_EXPONENT_ZERO = 1 << 15
_SIGN_BIT = 1 << 63
_COMPLEMENT = bytes(range(255, -1, -1))
_END = b"\0"

# Bool before the numbers: Python counts it among them. Code is a string to Python.
_RANKS: tuple[tuple[type, int], ...] = (
    (MinKey, LEAST),
    (type(None), 5),
    (bool, 40),
    (int, NUMBER),
    (float, NUMBER),
    (Decimal128, NUMBER),
    (Code, 60),
    (str, 15),
    (dict, 20),
    (DBRef, 20),
    (list, ARRAY),
    (bytes, 30),
    (ObjectId, 35),
    (DatetimeMS, 45),
    (Timestamp, 47),
    (Regex, 50),
    (MaxKey, GREATEST),
)


def rank(value: Any) -> int:
    """The place of a value's type among all types, from 1; values of one rank compare with each other."""
    for kind, number in _RANKS:
        if isinstance(value, kind):
            return number
    raise unsupported(f"values of the type {type(value).__name__}")


def sort_key(value: Any) -> bytes:
    """The key of a value; its first byte is the rank."""
    return bytes((rank(value),)) + _payload(value)


def _payload(value: Any) -> bytes:
    match rank(value):
        case 10:
            return _number(value)
        case 15:
            return _text(value)
        case 20:
            fields = value.as_doc().items() if isinstance(value, DBRef) else value.items()
            parts = (bytes((rank(item),)) + _text(name) + _payload(item) for name, item in fields)
            return b"".join(parts) + _END
        case 25:
            return b"".join(map(sort_key, value)) + _END
        case 30:
            subtype = value.subtype if isinstance(value, Binary) else 0
            return struct.pack(">IB", len(value), subtype) + bytes(value)
        case 35:
            return bytes(value.binary)
        case 40:
            return b"\1" if value else b"\0"
        case 45:
            return struct.pack(">Q", int(value) + _SIGN_BIT)
        case 47:
            return struct.pack(">II", value.time, value.inc)
        case 50:
            return _text(value.pattern) + struct.pack(">I", value.flags)
        case 60:
            return _text(str(value)) + (b"" if value.scope is None else _payload(value.scope))
        case _:
            return b""


def _text(value: str) -> bytes:
    """UTF-8 with an end that sorts before all that could follow."""
    return value.encode().replace(b"\0", b"\0\xff") + b"\0\0"


def _number(value: Any) -> bytes:
    """NaN, then all numbers by their exact value: an exponent and decimal digits, complemented where negative."""
    if isinstance(value, Decimal128):
        value = value.to_decimal()
    if value != value:
        return NOT_A_NUMBER
    if not value:
        return _ZERO
    if value in (math.inf, -math.inf):
        return _INFINITY if value > 0 else _MINUS_INFINITY
    _, digits, exponent = Decimal(value).as_tuple()
    text = "".join(map(str, digits)).lstrip("0")
    scale = len(text) + int(exponent) + _EXPONENT_ZERO
    key = struct.pack(">H", scale) + text.rstrip("0").encode() + _END
    return _POSITIVE + key if value > 0 else _NEGATIVE + key.translate(_COMPLEMENT)
