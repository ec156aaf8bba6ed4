"""How the next token is drawn."""

import math
from dataclasses import dataclass

MIN_REPETITION_PENALTY = 0.01
MAX_REPETITION_PENALTY = 100.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingOptions:
    """Sampling parameters, as `SamplingConfig` in the protocol describes them."""

    temperature: float = 1.0
    top_k: int = 40
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0

    @property
    def penalizes(self) -> bool:
        """Whether logits depend on the tokens seen before beyond what the model says."""
        return self.repetition_penalty != 1 or self.no_repeat_ngram_size > 0

    def problems(self) -> list[tuple[str, str]]:
        """What is wrong with them, as pairs of field and description."""
        found = []
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            found.append(("temperature", "must be 0 or greater"))
        if self.top_k < 0:
            found.append(("top_k", "must be 0 (all tokens) or greater"))
        if not 0 < self.top_p <= 1:
            found.append(("top_p", "must be over 0 and at most 1"))
        if not MIN_REPETITION_PENALTY <= self.repetition_penalty <= MAX_REPETITION_PENALTY:
            bounds = f"from {MIN_REPETITION_PENALTY:g} to {MAX_REPETITION_PENALTY:g}"
            found.append(("repetition_penalty", f"must be {bounds}, not {self.repetition_penalty:g}; 1 is none"))
        if self.no_repeat_ngram_size < 0:
            found.append(("no_repeat_ngram_size", "must be 0 (sequences may come again) or greater"))
        return found
