"""Prepares documents for the corpus: checks, Unicode normalisation, limits of length."""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_exporter.corpus.arrays import counts_of, index_array, string_array
from gpt2_exporter.corpus.source import Batch
from gpt2_exporter.rejects import reasons

_MAX_INT64 = np.iinfo(np.int64).max


class LeftOut(NamedTuple):
    """A document that is not written."""

    position: int
    """Position in its batch."""
    id: str
    reason: str
    unusable: bool
    """Whether the document is unusable, rather than left out by an option of the request."""


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """Consecutive documents of a source: those to write, as columns, and those that are left out."""

    source: str
    """URI of the collection or file that they come from."""
    ids: pa.StringArray
    texts: pa.StringArray
    sizes: np.ndarray
    """[documents], int64: bytes of each text in UTF-8."""
    lengths: np.ndarray
    """[documents], int64: code points of each text."""
    positions: np.ndarray
    """[documents], int64: position of each document in its batch, ascending."""
    left_out: Sequence[LeftOut]
    """The other documents, by ascending position."""
    end: int
    """Position in its batch after the last document, written or not."""
    token_at: Callable[[int], str]
    """Returns the token to resume reading with after the document at a position."""

    @property
    def resume_token(self) -> str:
        """Token to resume reading with after these documents."""
        return self.token_at(self.end - 1)

    def without(self, indices: Sequence[int], reason: str) -> "PreparedBatch":
        """Leaves out documents by an option of the request.

        Args:
            indices: Their indices among the documents to write.
            reason: Why they are left out.
        """
        if not indices:
            return self
        more = [LeftOut(int(self.positions[index]), self.ids[index].as_py(), reason, False) for index in indices]
        kept = np.delete(np.arange(len(self.ids)), indices)
        return replace(self.select(kept), left_out=sorted([*self.left_out, *more]))

    def slice(self, documents: slice, begin: int, end: int) -> "PreparedBatch":
        """Returns a range of the documents, with those left out from position `begin` to before `end`."""
        size = documents.stop - documents.start
        return replace(
            self,
            ids=self.ids.slice(documents.start, size),
            texts=self.texts.slice(documents.start, size),
            sizes=self.sizes[documents],
            lengths=self.lengths[documents],
            positions=self.positions[documents],
            left_out=[item for item in self.left_out if begin <= item.position < end],
            end=end,
        )

    def select(self, kept: np.ndarray) -> "PreparedBatch":
        """Returns the documents of some indices, ascending; what is left out stays as it is."""
        indices = index_array(kept)
        return replace(
            self,
            ids=self.ids.take(indices),
            texts=self.texts.take(indices),
            sizes=self.sizes[kept],
            lengths=self.lengths[kept],
            positions=self.positions[kept],
        )


def prepare(batches: Iterable[Batch], options: pb.DocumentOptions) -> Iterator[PreparedBatch]:
    """Yields each batch with its texts normalised, without the documents that are unusable, too short or too long."""
    for batch in batches:
        texts, broken = _to_arrow(batch.texts)
        if options.normalization == pb.NORMALIZATION_NFC:
            texts = _composed(texts)
        sizes, lengths = counts_of(pc.binary_length(texts)), counts_of(pc.utf8_length(texts))
        found = {position: (reason, True) for position, reason in {**broken, **batch.rejects}.items()}
        for reason, unusable, where in (
            (reasons.TOO_LARGE, True, sizes > reasons.MAX_DOCUMENT_BYTES),
            (reasons.TOO_SHORT, False, lengths < options.min_characters),
            (reasons.TOO_LONG, False, lengths > (options.max_characters or _MAX_INT64)),
        ):
            for position in np.flatnonzero(where).tolist():
                found.setdefault(position, (reason, unusable))
        left_out = [LeftOut(position, str(batch.ids[position]), *found[position]) for position in sorted(found)]
        ids, positions = string_array(batch.ids), np.arange(len(batch.ids))
        prepared = PreparedBatch(
            batch.source, ids, texts, sizes, lengths, positions, left_out, len(ids), batch.resume_token
        )
        yield prepared.select(np.delete(positions, list(found))) if found else prepared


def _composed(texts: pa.StringArray) -> pa.StringArray:
    """Returns the texts in Unicode normalisation form C (UAX #15), by Python's Unicode data."""
    plain = pc.string_is_ascii(texts).to_pylist()  # ASCII is in that form already.
    if all(plain):
        return texts
    values = texts.to_pylist()
    return string_array(
        [text if ascii_ else unicodedata.normalize("NFC", text) for text, ascii_ in zip(values, plain, strict=True)]
    )


def _to_arrow(texts: Sequence[str] | pa.StringArray) -> tuple[pa.StringArray, dict[int, str]]:
    """Returns the texts, and the reason of those that are not Unicode, by position; they are empty in the array."""
    try:
        return string_array(texts), {}
    except UnicodeEncodeError:
        # A lone surrogate: JSON can escape one, and UTF-8 has no bytes for it.
        broken = {position: reasons.BROKEN_TEXT for position, text in enumerate(texts) if not _is_unicode(text)}
        return string_array(["" if position in broken else text for position, text in enumerate(texts)]), broken


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
