"""Mean, spread and significance of trainings with several seeds."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import ttest_ind


@dataclass(frozen=True, slots=True)
class Summary:
    """One number of several trainings."""

    values: Sequence[float]

    @property
    def mean(self) -> float:
        """Mean."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation of the sample; 0 of a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def p_value(self, other: "Summary") -> float:
        """Two-sided p of Welch's t-test that both have one mean; 1 where there is one value only."""
        if min(len(self.values), len(other.values)) < 2:
            return 1.0
        return float(ttest_ind(self.values, other.values, equal_var=False).pvalue)

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.spread:.3f}"
