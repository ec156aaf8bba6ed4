"""Builds Arrow arrays from buffers, and reads their buffers.

`pyarrow.array` and `to_numpy` do the same more slowly, and import pandas where it is installed, which takes longer than
a small export.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def string_array(values: Sequence[str] | pa.StringArray) -> pa.StringArray:
    """Returns an Arrow array of strings; an array is returned as it is.

    Raises:
        UnicodeEncodeError: One of them has a lone surrogate.
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
    """Returns an Arrow array of ASCII strings of the same size, from 1, that are joined in one string."""
    offsets = np.arange(0, len(joined) + 1, size, dtype=np.int32)
    return pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(joined.encode()))


def index_array(values: np.ndarray) -> pa.Int64Array:
    """Returns an Arrow array of indices, [n] integers, as int64."""
    positions = np.ascontiguousarray(values, np.int64)
    return pa.Array.from_buffers(pa.int64(), len(positions), [None, pa.py_buffer(positions)])


def counts_of(array: pa.Int32Array) -> np.ndarray:
    """Returns the values of an Arrow array without nulls, [n], as int64."""
    if not len(array):
        return np.zeros(0, np.int64)
    values = np.frombuffer(array.buffers()[1], np.int32, count=len(array), offset=4 * array.offset)
    return values.astype(np.int64)
