"""Takes `_id`s and texts straight out of raw batches whose documents are all of the plain kind.

Most collections hold `{_id: ObjectId, <field>: string}` once projected. Where every document of a batch is laid out
just so, nothing of it need become an object of Python: the texts go to Arrow by their offsets. Whatever is laid out in
another way, or is no UTF-8, is not read here; the caller decodes such a batch in full.
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
_LARGEST_BATCH = np.iinfo(np.int32).max


class ObjectIds(Sequence[ObjectId]):
    """ObjectIds that are made when they are asked for. Slices have no step.

    Args:
        raw: Their bytes, 12 for each.
    """

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def __len__(self) -> int:
        return len(self._raw) // _ID_BYTES

    def increase(self, after: ObjectId | None, last: ObjectId) -> bool:
        """Whether they are in strict order, after one id where that is given, and up to another."""
        bounded = (b"" if after is None else after.binary) + self._raw
        # Of one length, so that NumPy's comparison, which ignores zero bytes at the end, is that of the bytes.
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
    """The `_id`s, those as text, and the texts of a batch; None where one document is not of the plain kind.

    Args:
        batch: Documents of BSON, one after another.
        field: Name of the text's field.
    """
    begins = _begins(batch)
    if begins is None:
        return None
    data = np.frombuffer(batch, np.uint8)
    head = np.frombuffer(b"\x02" + field.encode() + b"\0", np.uint8)
    text_begins = begins[:-1] + _FIELD_AT + len(head) + _SIZE_BYTES
    text_ends = begins[1:] - 2  # After it come its own zero byte and that of the document.
    if (text_ends <= text_begins).any():
        return None
    id_head = np.frombuffer(_ID_HEADER, np.uint8)
    sizes = data[text_begins[:, None] - _SIZE_BYTES + np.arange(_SIZE_BYTES)].view("<i4")[:, 0]
    sound = (
        (data[begins[:-1, None] + 4 + np.arange(len(id_head))] == id_head).all()
        and (data[begins[:-1, None] + _FIELD_AT + np.arange(len(head))] == head).all()
        and (sizes == text_ends - text_begins + 1).all()
        and not data[text_ends].any()
        and not data[text_ends + 1].any()
    )
    texts = _texts(batch, text_begins, text_ends) if sound else None
    if texts is None:
        return None
    ids = data[begins[:-1, None] + _ID_AT + np.arange(_ID_BYTES)].tobytes()
    return ObjectIds(ids), fixed_strings(ids.hex(), 2 * _ID_BYTES), texts


def _begins(batch: bytes) -> np.ndarray | None:
    """Where each document begins, and the end; None where their sizes do not fit the batch."""
    if len(batch) > _LARGEST_BATCH:
        return None
    least = _FIELD_AT + _SIZE_BYTES + 4
    begins, begin = [0], 0
    while begin < len(batch):
        begin += int.from_bytes(batch[begin : begin + 4], "little")
        if begin - begins[-1] < least:
            return None
        begins.append(begin)
    return np.array(begins, np.int64) if begin == len(batch) else None


def _texts(batch: bytes, begins: np.ndarray, ends: np.ndarray) -> pa.StringArray | None:
    """The texts between two kinds of offsets; None where one is no UTF-8."""
    # Of the strings that these offsets cut the batch into, every other one is a text.
    offsets = np.empty(2 * len(begins), np.int32)
    offsets[0::2], offsets[1::2] = begins, ends
    cut = pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(batch))
    texts = cut.take(index_array(np.arange(0, len(offsets) - 1, 2)))
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        return None
    return texts
