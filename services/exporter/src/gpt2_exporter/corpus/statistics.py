"""Counts the documents of an export: those written, by length and script, and those left out, by reason."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpt2_contracts.corpus import CorpusCounts
from gpt2_exporter.corpus.preparation import PreparedBatch
from gpt2_exporter.corpus.scripts import ScriptCounter

_MAX_SAMPLED_REJECTS = 100
_EXAMPLES = 3
# Scripts are counted in all of the first documents, then in one of so many.
_SCRIPTS_OF_FIRST = 4096
_SCRIPTS_OF_ONE_IN = 64


@dataclass(slots=True)
class CorpusStatistics:
    """Counts of an export so far."""

    documents: int = 0
    """Documents written."""
    bytes: int = 0
    """Bytes of their texts in UTF-8."""
    characters: int = 0
    """Code points of their texts."""
    lengths: Counter[int] = field(default_factory=Counter)
    """Documents by length: under n those of 2**(n-1) to 2**n - 1 characters."""
    scripts: Counter[str] = field(default_factory=Counter)
    """Letters by script, in a sample of the documents."""
    script_documents: int = 0
    """Documents in that sample."""
    rejects: Counter[str] = field(default_factory=Counter)
    """Unusable documents, by reason."""
    filtered: Counter[str] = field(default_factory=Counter)
    """Usable documents that options of the request left out, by reason."""
    sample: list[dict[str, str]] = field(default_factory=list)
    """The first documents left out: id, source and reason."""
    _script_counter: ScriptCounter = field(default_factory=ScriptCounter, repr=False, compare=False)

    def add(self, batch: PreparedBatch) -> None:
        """Counts the documents of a batch, written or left out."""
        for item in batch.left_out:
            (self.rejects if item.unusable else self.filtered)[item.reason] += 1
            if len(self.sample) < _MAX_SAMPLED_REJECTS:
                self.sample.append({"id": item.id, "source": batch.source, "reason": item.reason})
        numbers = range(self.documents, self.documents + len(batch.sizes))
        sampled = [n for n in numbers if n < _SCRIPTS_OF_FIRST or n % _SCRIPTS_OF_ONE_IN == 0]
        self.scripts.update(self._script_counter.count([batch.texts[n - numbers.start].as_py() for n in sampled]))
        self.script_documents += len(sampled)
        self.documents += len(batch.sizes)
        self.bytes += int(batch.sizes.sum())
        self.characters += int(batch.lengths.sum())
        # The exponent of a float's binary form: exact for integers below 2**53.
        exponents = np.frexp(batch.lengths.astype(np.float64))[1]
        counts = np.bincount(exponents)
        self.lengths.update({exponent: int(count) for exponent, count in enumerate(counts) if count})

    @property
    def read(self) -> int:
        """Documents read, written or not."""
        return self.documents + self.rejects.total() + self.filtered.total()

    def describe_left_out(self) -> str:
        """What is left out, by reason, with examples; such as `2 text missing, 1 text null (such as a, b, c)`."""
        counts = sorted((self.rejects + self.filtered).items())
        by_reason = ", ".join(f"{count} {reason}" for reason, count in counts)
        examples = [item["id"] for item in self.sample if item["reason"] in self.rejects or not self.rejects]
        return f"{by_reason} (such as {', '.join(examples[:_EXAMPLES])})"

    def counts(self) -> CorpusCounts:
        """The counts of the corpus artifact."""
        return CorpusCounts(
            documents=self.documents,
            bytes=self.bytes,
            rejected=self.rejects.total(),
            filtered=self.filtered.total(),
        )

    def summary(self) -> dict[str, Any]:
        """The content of `summary.json`."""
        return {
            **self.counts().to_counts(),
            "characters": self.characters,
            "documents_by_characters": {
                f"{1 << exponent >> 1}-{(1 << exponent) - 1}": count for exponent, count in sorted(self.lengths.items())
            },
            "letters_by_script": dict(self.scripts.most_common()),
            "letters_by_script_documents": self.script_documents,
            "rejected_by_reason": dict(sorted(self.rejects.items())),
            "filtered_by_reason": dict(sorted(self.filtered.items())),
        }

    def to_json(self) -> dict[str, Any]:
        """The statistics as JSON values."""
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
    def from_json(cls, content: dict[str, Any]) -> "CorpusStatistics":
        """Reads the values of `to_json`. Raises KeyError when one is missing."""
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
