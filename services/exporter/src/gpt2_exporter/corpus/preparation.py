"""What happens to the documents of a batch before they are written: checks, normalisation, limits, duplicates."""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_exporter.corpus.arrays import counts_of, index_array, string_array
from gpt2_exporter.corpus.duplicates import SeenTexts
from gpt2_exporter.corpus.record import BROKEN_TEXT, LARGEST_DOCUMENT, TOO_LARGE, Batch

TOO_SHORT = "too short"
TOO_LONG = "too long"
DUPLICATE = "duplicate"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch, ready to be written."""

    batch: Batch
    ids: pa.Array
    """The usable documents' ids."""
    texts: pa.Array
    """Their texts."""
    sizes: np.ndarray
    """Bytes of their texts in UTF-8."""
    lengths: np.ndarray
    """Code points of their texts."""
    positions: np.ndarray
    """Their positions in the batch, ascending."""
    left_out: Mapping[int, tuple[str, bool]]
    """Reason, and whether the document is unusable, of every other position."""


class Preparation:
    """Applies the options of a request.

    Args:
        options: The options.
        seen: Where texts are looked up that were written before; None where duplicates stay.
    """

    def __init__(self, options: pb.DocumentOptions, seen: SeenTexts | None) -> None:
        self._normalize = options.normalization == pb.NORMALIZATION_NFC
        self._least = options.min_characters
        self._most = options.max_characters
        self._seen = seen

    def prepare(self, batch: Batch, documents: int) -> Prepared:
        """Prepares a batch, before which `documents` documents were accepted."""
        texts, broken = _to_arrow(batch)
        left_out = {position: (reason, True) for position, reason in {**broken, **batch.rejects}.items()}
        if self._normalize:
            texts = _composed(texts)
        sizes, lengths = counts_of(pc.binary_length(texts)), counts_of(pc.utf8_length(texts))
        for reason, unusable, where in (
            (TOO_LARGE, True, sizes > LARGEST_DOCUMENT),
            (TOO_SHORT, False, lengths < self._least),
            (TOO_LONG, False, lengths > (self._most or np.iinfo(np.int64).max)),
        ):
            for position in np.flatnonzero(where).tolist():
                left_out.setdefault(position, (reason, unusable))
        if self._seen is not None:
            usable = [position for position in range(len(batch.ids)) if position not in left_out]
            for position in self._seen.add(texts, usable, documents):
                left_out[position] = (DUPLICATE, False)
        return _select(batch, texts, sizes, lengths, left_out)


def _composed(texts: pa.Array) -> pa.Array:
    """The texts in the normal form NFC, by the Unicode data of Python. ASCII is in it already."""
    plain = pc.string_is_ascii(texts).to_pylist()
    if all(plain):
        return texts
    values = texts.to_pylist()
    return string_array(
        [text if ascii_ else unicodedata.normalize("NFC", text) for text, ascii_ in zip(values, plain, strict=True)]
    )


def _select(
    batch: Batch, texts: pa.Array, sizes: np.ndarray, lengths: np.ndarray, left_out: Mapping[int, tuple[str, bool]]
) -> Prepared:
    ids = string_array(batch.ids)
    positions = np.arange(len(ids))
    if left_out:
        positions = np.delete(positions, list(left_out))
        kept = index_array(positions)
        ids, texts = ids.take(kept), texts.take(kept)
        sizes, lengths = sizes[positions], lengths[positions]
    return Prepared(batch, ids, texts, sizes, lengths, positions, left_out)


def _to_arrow(batch: Batch) -> tuple[pa.Array, dict[int, str]]:
    """The texts, and the positions of those that are no Unicode, which are empty there."""
    try:
        return string_array(batch.texts), {}
    except UnicodeEncodeError:
        # A lone surrogate: JSON can escape one, and UTF-8 has no bytes for it.
        broken = {position: BROKEN_TEXT for position, text in enumerate(batch.texts) if not _is_unicode(text)}
        texts = ["" if position in broken else text for position, text in enumerate(batch.texts)]
        return _to_arrow(replace(batch, texts=texts))[0], broken


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
