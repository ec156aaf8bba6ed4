"""How the next token is drawn."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingOptions:
    """Sampling parameters, as `SamplingConfig` in the protocol describes them."""

    temperature: float = 1.0
    top_k: int = 40
    top_p: float = 1.0

    def problems(self) -> list[tuple[str, str]]:
        """What is wrong with them, as pairs of field and description."""
        found = []
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            found.append(("temperature", "must be 0 or greater"))
        if self.top_k < 0:
            found.append(("top_k", "must be 0 (all tokens) or greater"))
        if not 0 < self.top_p <= 1:
            found.append(("top_p", "must be over 0 and at most 1"))
        return found
