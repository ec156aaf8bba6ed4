"""Counts what an export has read: what was written and of what kind it is, and what was left out, by reason."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_SAMPLED_REJECTS = 100
_EXAMPLES = 3


@dataclass(slots=True)
class Tally:
    """The counts of an export so far."""

    documents: int = 0
    """Documents written."""
    bytes: int = 0
    """Bytes of their texts in UTF-8."""
    characters: int = 0
    """Code points of their texts."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Documents by length: under n those of 2**(n-1) to 2**n - 1 characters."""
    scripts: Counter[str] = field(default_factory=Counter)
    """Letters by script, in the documents looked at for it."""
    script_documents: int = 0
    """Documents looked at for their scripts."""
    rejects: Counter[str] = field(default_factory=Counter)
    """Unusable documents, by reason."""
    filtered: Counter[str] = field(default_factory=Counter)
    """Usable documents that the request's options left out, by reason."""
    sample: list[dict[str, str]] = field(default_factory=list)
    """The first of those left out: id, source and reason."""

    def accept(self, sizes: np.ndarray, lengths: np.ndarray) -> None:
        """Counts documents that were written.

        Args:
            sizes: Bytes of each text in UTF-8; integers.
            lengths: Characters of each text; integers from 1.
        """
        self.documents += len(sizes)
        self.bytes += int(sizes.sum())
        self.characters += int(lengths.sum())
        # The exponent of a float's binary form: exact for integers below 2**53.
        exponents = np.frexp(lengths.astype(np.float64))[1]
        found = np.bincount(exponents)
        self.lengths.update({exponent: int(count) for exponent, count in enumerate(found) if count})

    def leave_out(self, identifier: str, source: str, reason: str, *, unusable: bool) -> None:
        """Counts a document that was left out, as it is unusable or as the request's options say so."""
        (self.rejects if unusable else self.filtered)[reason] += 1
        if len(self.sample) < _SAMPLED_REJECTS:
            self.sample.append({"id": identifier, "source": source, "reason": reason})

    @property
    def read(self) -> int:
        """Documents read, written or not."""
        return self.documents + self.rejects.total() + self.filtered.total()

    def explain_rejects(self) -> str:
        """What is left out, by reason, with examples; such as `2 text missing, 1 text null (such as a, b, c)`."""
        counts = sorted((self.rejects + self.filtered).items())
        by_reason = ", ".join(f"{count} {reason}" for reason, count in counts)
        unusable = [reject["id"] for reject in self.sample if reject["reason"] in self.rejects or not self.rejects]
        return f"{by_reason} (such as {', '.join(unusable[:_EXAMPLES])})"

    def counts(self) -> dict[str, float]:
        """The counts of the corpus artifact."""
        counts: dict[str, float] = {
            "documents": self.documents,
            "bytes": self.bytes,
            "rejected": self.rejects.total(),
        }
        return {**counts, "filtered": self.filtered.total()} if self.filtered else counts

    def to_json(self) -> dict[str, Any]:
        """The tally as JSON values."""
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "characters": self.characters,
            "lengths": {str(exponent): count for exponent, count in self.lengths.items()},
            "scripts": dict(self.scripts),
            "script_documents": self.script_documents,
            "rejects": dict(self.rejects),
            "filtered": dict(self.filtered),
            "sample": self.sample,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Tally":
        """Reads what `to_json` gave."""
        return cls(
            content["documents"],
            content["bytes"],
            content["characters"],
            Counter({int(exponent): count for exponent, count in content["lengths"].items()}),
            Counter(content["scripts"]),
            content["script_documents"],
            Counter(content["rejects"]),
            Counter(content["filtered"]),
            content["sample"],
        )

    def summary(self) -> dict[str, Any]:
        """What `summary.json` says."""
        return {
            **self.counts(),
            "characters": self.characters,
            "documents_by_characters": {
                f"{1 << exponent >> 1}-{(1 << exponent) - 1}": count for exponent, count in sorted(self.lengths.items())
            },
            "letters_by_script": dict(self.scripts.most_common()),
            "letters_by_script_documents": self.script_documents,
            "rejected_by_reason": dict(sorted(self.rejects.items())),
            "filtered_by_reason": dict(sorted(self.filtered.items())),
        }
