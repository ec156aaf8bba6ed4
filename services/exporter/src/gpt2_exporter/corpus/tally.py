"""Counts what an export has read: documents and bytes written, and what was unusable, by reason."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

_SAMPLED_REJECTS = 100
_EXAMPLES = 3


@dataclass(slots=True)
class Tally:
    """The counts of an export so far."""

    documents: int = 0
    """Documents written."""
    bytes: int = 0
    """Bytes of their texts in UTF-8."""
    rejects: Counter[str] = field(default_factory=Counter)
    """Documents left out, by reason."""
    sample: list[dict[str, str]] = field(default_factory=list)
    """The first of those left out: id, source and reason."""

    def accept(self, size: int) -> None:
        """Counts a document that was written, whose text has `size` bytes of UTF-8."""
        self.documents += 1
        self.bytes += size

    def reject(self, identifier: str, source: str, reason: str) -> None:
        """Counts a document that was left out."""
        self.rejects[reason] += 1
        if len(self.sample) < _SAMPLED_REJECTS:
            self.sample.append({"id": identifier, "source": source, "reason": reason})

    @property
    def read(self) -> int:
        """Documents read, usable or not."""
        return self.documents + self.rejects.total()

    def explain_rejects(self) -> str:
        """What is unusable, by reason, with examples; such as `2 text missing, 1 text null (such as a, b, c)`."""
        by_reason = ", ".join(f"{count} {reason}" for reason, count in sorted(self.rejects.items()))
        examples = ", ".join(reject["id"] for reject in self.sample[:_EXAMPLES])
        return f"{by_reason} (such as {examples})"

    def counts(self) -> dict[str, float]:
        """The counts of the corpus artifact."""
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "rejected": self.rejects.total(),
        }

    def to_json(self) -> dict[str, Any]:
        """The tally as JSON values."""
        return {
            "documents": self.documents,
            "bytes": self.bytes,
            "rejects": dict(self.rejects),
            "sample": self.sample,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Tally":
        """Reads what `to_json` gave."""
        return cls(content["documents"], content["bytes"], Counter(content["rejects"]), content["sample"])

    def summary(self) -> dict[str, Any]:
        """What `summary.json` says."""
        return {**self.counts(), "rejected_by_reason": dict(sorted(self.rejects.items()))}
