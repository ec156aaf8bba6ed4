"""Builds Arrow arrays from their buffers, and reads them from there.

`pyarrow.array` and `to_numpy` would do the same, slower, and imports pandas where it is there, which takes longer
than a small export.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def string_array(values: Sequence[str] | pa.StringArray) -> pa.StringArray:
    """An Arrow array of strings; one that is there already is given back.

    Raises:
        UnicodeEncodeError: One of them holds a lone surrogate.
    """
    if isinstance(values, pa.StringArray):
        return values
    joined = "".join(values)
    if joined.isascii():
        data, sizes = joined.encode(), [len(value) for value in values]
    else:
        encoded = [value.encode() for value in values]
        data, sizes = b"".join(encoded), [len(value) for value in encoded]
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum(sizes, out=offsets[1:])
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(data))


def fixed_strings(joined: str, size: int) -> pa.StringArray:
    """An Arrow array of ASCII strings that are all of one size, from 1, and stand one after another."""
    offsets = np.arange(0, len(joined) + 1, size, dtype=np.int32)
    return pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(joined.encode()))


def index_array(values: np.ndarray) -> pa.Int64Array:
    """An Arrow array of positions."""
    positions = np.ascontiguousarray(values, np.int64)
    return pa.Array.from_buffers(pa.int64(), len(positions), [None, pa.py_buffer(positions)])


def counts_of(array: pa.Int32Array) -> np.ndarray:
    """The values of an Arrow array of int32 without nulls, as int64."""
    if not len(array):
        return np.zeros(0, np.int64)
    values = np.frombuffer(array.buffers()[1], np.int32, count=len(array), offset=4 * array.offset)
    return values.astype(np.int64)
