"""What users can do about documents that were left out: advice for the reasons that occurred, from any source."""

from collections.abc import Iterable, Mapping

from gpt2_exporter.corpus import record
from gpt2_exporter.corpus.preparation import DUPLICATE, TOO_LONG, TOO_SHORT
from gpt2_exporter.corpus.tally import Tally

MAX_DOCUMENT = f"{record.LARGEST_DOCUMENT:,} bytes ({record.LARGEST_DOCUMENT >> 20} MiB)"
"""The most that a document may have, for messages."""
FIELD_REASONS = (record.MISSING, record.NULL, record.EMPTY, record.NOT_A_STRING)
"""Reasons of documents whose text may be in another field."""
_FILTERED = {
    TOO_SHORT: "lower documents.min_characters",
    TOO_LONG: "raise documents.max_characters",
    DUPLICATE: "leave out documents.drop_duplicates",
}


def advice_on(tally: Tally, by_reason: Mapping[str, Iterable[str]]) -> str:
    """Joins the advice for the reasons that occurred.

    Args:
        tally: What was left out.
        by_reason: What to do about each reason; the same advice is given once.
    """
    if not tally.rejects:
        return ", or ".join(_FILTERED[reason] for reason in tally.filtered if reason in _FILTERED)
    found = [advice for reason in tally.rejects for advice in by_reason.get(reason, ())]
    return ", or ".join(dict.fromkeys(found)) or "correct the documents"
