"""Dropout rates of a training, by where in the network they apply."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class DropoutRates:
    """Fractions from 0 to under 1, as `attn_pdrop`, `resid_pdrop` and `embd_pdrop` of `transformers`."""

    attention: float = 0.0
    residual: float = 0.0
    embedding: float = 0.0

    def __bool__(self) -> bool:
        """Whether anything is dropped."""
        return bool(self.attention or self.residual or self.embedding)
