"""Low-rank adaptation: which matrices get additions, and how large these are."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TARGETS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
"""The matrices of a layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraOptions:
    """Parameters of low-rank adaptation, as `LoraConfig` in the protocol describes them."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS

    @property
    def scale(self) -> float:
        """What a product of adapters is multiplied with."""
        return self.alpha / self.rank

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "LoraOptions":
        """Reads what `dataclasses.asdict` made, before or after JSON, which has no tuples."""
        return cls(**{**content, "targets": tuple(content["targets"])})

    def problems(self) -> list[tuple[str, str]]:
        """What is wrong with them, as pairs of field and description."""
        found = []
        if self.rank < 1:
            found.append(("rank", "must be at least 1"))
        if not 0 < self.alpha < math.inf:
            found.append(("alpha", "must be over 0"))
        if unknown := [target for target in self.targets if target not in TARGETS]:
            found.append(("targets", f"must be of {', '.join(TARGETS)}, not {unknown[0]!r}"))
        if len(set(self.targets)) < len(self.targets):
            found.append(("targets", "must not name a matrix twice"))
        return found
