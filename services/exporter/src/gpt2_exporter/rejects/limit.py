"""The limit of a request on unusable documents."""

from collections.abc import Callable
from dataclasses import dataclass

from gpt2_common.errors import FailedPrecondition
from gpt2_exporter.corpus.statistics import CorpusStatistics


@dataclass(frozen=True, slots=True)
class RejectLimit:
    """How many documents may be unusable, and what users can do where more are."""

    max_rejected: int
    """Maximum number; -1 for no limit."""
    max_fraction: float
    """Maximum as a fraction of the documents read, which replaces `max_rejected` 0; 0 for none."""
    advice: Callable[[CorpusStatistics], str]
    """Returns what to change, for what was left out."""

    def check(self, statistics: CorpusStatistics) -> None:
        """Raises FailedPrecondition when more documents are unusable than the number allows."""
        allowed = -1 if self.max_fraction and not self.max_rejected else self.max_rejected
        if 0 <= allowed < statistics.rejects.total():
            self._fail(statistics, "max_rejected", f"{allowed}")

    def check_fraction(self, statistics: CorpusStatistics) -> None:
        """Raises FailedPrecondition when, with everything read, more are unusable than the fraction allows."""
        if self.max_fraction and statistics.rejects.total() > self.max_fraction * statistics.read:
            self._fail(statistics, "max_rejected_fraction", f"{self.max_fraction:g} of them")

    def _fail(self, statistics: CorpusStatistics, option: str, allowed: str) -> None:
        rejected = statistics.rejects.total()
        raise FailedPrecondition(
            f"{rejected} of the first {statistics.read} documents are unusable: {statistics.describe_left_out()}; "
            f"{option} allows {allowed}: {self.advice(statistics)}, or raise {option}",
            rejected=str(rejected),
        )
