"""The fast path of decoding: reads `_id`s and texts from raw batches (bsonspec.org) by their offsets.

Most collections have documents of the form `{_id: ObjectId, <field>: string}` once projected. A batch of only such
documents goes to Arrow without any object of Python. Batches in another form, or with invalid UTF-8, are left to the
caller.
"""

from collections.abc import Sequence
from typing import overload

import numpy as np
import pyarrow as pa
from bson.objectid import ObjectId

from gpt2_exporter.corpus.arrays import fixed_strings, index_array

_ID_HEADER = b"\x07_id\0"
_ID_AT = 4 + len(_ID_HEADER)
_ID_BYTES = 12
_FIELD_AT = _ID_AT + _ID_BYTES
_SIZE_BYTES = 4
_MAX_BATCH_BYTES = np.iinfo(np.int32).max


class ObjectIds(Sequence[ObjectId]):
    """ObjectIds in one string of bytes, created on access. Slices have no step.

    Args:
        raw: Their bytes, 12 per id.
    """

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def __len__(self) -> int:
        return len(self._raw) // _ID_BYTES

    def increase(self, after: ObjectId | None, last: ObjectId) -> bool:
        """Whether they are strictly ascending, after one id where that is given, and up to another."""
        bounded = (b"" if after is None else after.binary) + self._raw
        # All have the same length, so NumPy's comparison, which ignores trailing zero bytes, is that of the bytes.
        values = np.frombuffer(bounded, f"S{_ID_BYTES}")
        return bool((values[:-1] < values[1:]).all()) and self._raw[-_ID_BYTES:] <= last.binary

    @overload
    def __getitem__(self, position: int) -> ObjectId: ...

    @overload
    def __getitem__(self, position: slice) -> Sequence[ObjectId]: ...

    def __getitem__(self, position: int | slice) -> ObjectId | Sequence[ObjectId]:
        if isinstance(position, slice):
            begin, end, _ = position.indices(len(self))
            return ObjectIds(self._raw[begin * _ID_BYTES : end * _ID_BYTES])
        begin = range(len(self))[position] * _ID_BYTES
        return ObjectId(self._raw[begin : begin + _ID_BYTES])


def read_plain(batch: bytes, field: str) -> tuple[ObjectIds, pa.StringArray, pa.StringArray] | None:
    """Returns the `_id`s, the same as text, and the texts of a batch; None where a document has another form.

    Args:
        batch: Documents of BSON, one after another.
        field: Name of the field of the text.
    """
    begins = _begins(batch)
    if begins is None:
        return None
    data = np.frombuffer(batch, np.uint8)
    head = np.frombuffer(b"\x02" + field.encode() + b"\0", np.uint8)
    text_begins = begins[:-1] + _FIELD_AT + len(head) + _SIZE_BYTES
    text_ends = begins[1:] - 2  # Its own zero byte and that of the document follow.
    if (text_ends <= text_begins).any():
        return None
    id_head = np.frombuffer(_ID_HEADER, np.uint8)
    sizes = data[text_begins[:, None] - _SIZE_BYTES + np.arange(_SIZE_BYTES)].view("<i4")[:, 0]
    is_valid = (
        (data[begins[:-1, None] + 4 + np.arange(len(id_head))] == id_head).all()
        and (data[begins[:-1, None] + _FIELD_AT + np.arange(len(head))] == head).all()
        and (sizes == text_ends - text_begins + 1).all()
        and not data[text_ends].any()
        and not data[text_ends + 1].any()
    )
    texts = _texts(batch, text_begins, text_ends) if is_valid else None
    if texts is None:
        return None
    ids = data[begins[:-1, None] + _ID_AT + np.arange(_ID_BYTES)].tobytes()
    return ObjectIds(ids), fixed_strings(ids.hex(), 2 * _ID_BYTES), texts


def _begins(batch: bytes) -> np.ndarray | None:
    """Returns the offset of each document, and of the end; None where their sizes do not match the batch."""
    if len(batch) > _MAX_BATCH_BYTES:
        return None
    min_bytes = _FIELD_AT + _SIZE_BYTES + 4
    begins, begin = [0], 0
    while begin < len(batch):
        begin += int.from_bytes(batch[begin : begin + 4], "little")
        if begin - begins[-1] < min_bytes:
            return None
        begins.append(begin)
    return np.array(begins, np.int64) if begin == len(batch) else None


def _texts(batch: bytes, begins: np.ndarray, ends: np.ndarray) -> pa.StringArray | None:
    """Returns the texts from offsets to offsets; None where one is not UTF-8."""
    # These offsets cut the batch into strings of which every other one is a text.
    offsets = np.empty(2 * len(begins), np.int32)
    offsets[0::2], offsets[1::2] = begins, ends
    cut = pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(batch))
    texts = cut.take(index_array(np.arange(0, len(offsets) - 1, 2)))
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        return None
    return texts
