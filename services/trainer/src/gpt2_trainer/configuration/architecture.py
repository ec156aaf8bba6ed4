"""The shape of a GPT-2: sizes, and OpenAI's four presets."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

PADDING = 128
"""Inside, the vocabulary is padded to a multiple of this, which matrix units like; outside it is exact."""

# Far beyond every GPT-2, so that a damaged file cannot fill the memory with the names of its weights alone.
_GREATEST: Mapping[str, int] = MappingProxyType(
    {"n_layer": 1 << 12, "n_head": 1 << 12, "n_embd": 1 << 17, "n_ctx": 1 << 20, "vocabulary_size": 1 << 24}
)


def whole_number(content: Mapping[str, Any], name: str) -> int:
    """A number of a JSON object. Raises KeyError when it is missing, ValueError when it is something else."""
    value = content[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, no whole number")
    return value


def _size_problems(name: str, size: int) -> list[tuple[str, str]]:
    if size < 1:
        return [(name, "must be at least 1")]
    return [(name, f"must be at most {_GREATEST[name]}")] if size > _GREATEST[name] else []


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSizes:
    """Sizes of a transformer without its vocabulary."""

    n_layer: int
    n_head: int
    n_embd: int
    n_ctx: int

    def problems(self) -> list[tuple[str, str]]:
        """What is wrong with them, as pairs of field and description."""
        names = ("n_layer", "n_head", "n_embd", "n_ctx")
        found = [problem for name in names for problem in _size_problems(name, getattr(self, name))]
        if not found and self.n_embd % self.n_head:
            found.append(("n_head", f"must divide n_embd: {self.n_embd} is no multiple of {self.n_head}"))
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A GPT-2 with its vocabulary.

    Raises:
        ValueError: A size is not possible; the message names it.
    """

    layers: LayerSizes
    vocabulary_size: int
    end_token_id: int

    def __post_init__(self) -> None:
        found = self.layers.problems() + _size_problems("vocabulary_size", self.vocabulary_size)
        if not 0 <= self.end_token_id < self.vocabulary_size:
            found.append(("end_token_id", f"must be in the vocabulary, 0 to {self.vocabulary_size - 1}"))
        if found:
            raise ValueError("; ".join(f"{name} {description}" for name, description in found))

    @property
    def padded_vocabulary_size(self) -> int:
        """Rows of the embedding in memory."""
        return -(-self.vocabulary_size // PADDING) * PADDING

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.layers.n_embd // self.layers.n_head

    def to_json(self) -> dict[str, int]:
        """The content of a checkpoint's `config.json`."""
        return {
            "n_layer": self.layers.n_layer,
            "n_head": self.layers.n_head,
            "n_embd": self.layers.n_embd,
            "n_ctx": self.layers.n_ctx,
            "vocabulary_size": self.vocabulary_size,
            "end_token_id": self.end_token_id,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Architecture":
        """Reads what `to_json` made. Raises KeyError, TypeError or ValueError when it is not that."""
        layers = LayerSizes(**{name: whole_number(content, name) for name in ("n_layer", "n_head", "n_embd", "n_ctx")})
        return cls(
            layers=layers,
            vocabulary_size=whole_number(content, "vocabulary_size"),
            end_token_id=whole_number(content, "end_token_id"),
        )


_SMALL = LayerSizes(n_layer=12, n_head=12, n_embd=768, n_ctx=1024)
_MEDIUM = LayerSizes(n_layer=24, n_head=16, n_embd=1024, n_ctx=1024)

# 117M and 345M are the names that the first two sizes had at first; OpenAI's files are under the new ones.
OFFICIAL_NAMES: Mapping[str, str] = MappingProxyType(
    {"124M": "124M", "117M": "124M", "355M": "355M", "345M": "355M", "774M": "774M", "1558M": "1558M"}
)
PRESETS: Mapping[str, LayerSizes] = MappingProxyType(
    {
        "124M": _SMALL,
        "355M": _MEDIUM,
        "774M": LayerSizes(n_layer=36, n_head=20, n_embd=1280, n_ctx=1024),
        "1558M": LayerSizes(n_layer=48, n_head=25, n_embd=1600, n_ctx=1024),
    }
)
"""OpenAI's sizes by official name."""
