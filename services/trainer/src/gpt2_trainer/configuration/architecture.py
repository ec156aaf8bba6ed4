"""The shape of a GPT-2: sizes, OpenAI's four presets, and what relatives of GPT-2 compute otherwise."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_rules import content_violations

PADDING = 128
"""Inside, the vocabulary is padded to a multiple of this, which matrix units like; outside it is exact."""

# As the rules of sizes in ModelConfig: far beyond every GPT-2, so that a damaged file cannot fill the memory with the
# names of its weights alone.
_MAX_VOCABULARY = 1 << 24
NORM_EPSILON = 1e-5
"""What GPT-2's layer norms add to the variance."""
ACTIVATIONS = ("gelu_new", "gelu")
"""The GELU in its tanh form, as GPT-2's, and the exact one."""


def whole_number(content: Mapping[str, Any], name: str) -> int:
    """A number of a JSON object. Raises KeyError when it is missing, ValueError when it is something else."""
    value = content[name]
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, no whole number")
    return value


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSizes:
    """Sizes of a transformer without its vocabulary."""

    n_layer: int
    n_head: int
    n_embd: int
    n_ctx: int
    n_inner: int = 0
    """Width of the MLP's hidden layer; 0: 4 times `n_embd`, as GPT-2's."""

    @property
    def inner_size(self) -> int:
        """Width of the MLP's hidden layer."""
        return self.n_inner or 4 * self.n_embd

    @classmethod
    def of(cls, *, n_layer: int, n_head: int, n_embd: int, n_ctx: int, n_inner: int = 0) -> "LayerSizes":
        """Sizes of which equal ones are written alike: an `n_inner` of 4 times `n_embd` is none."""
        inner = 0 if n_inner == 4 * n_embd else n_inner
        return cls(n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_ctx=n_ctx, n_inner=inner)

    def problems(self) -> list[tuple[str, str]]:
        """What is wrong with them, as pairs of field and description."""
        found = content_violations(pb.ModelConfig.DESCRIPTOR, {**asdict(self), "n_inner": self.n_inner or None})
        if not found and self.n_embd % self.n_head:
            found.append(("n_head", f"must divide n_embd: {self.n_embd} is no multiple of {self.n_head}"))
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """What a relative of GPT-2 computes otherwise, by the names of `config.json` of `transformers`."""

    activation_function: str = "gelu_new"
    """One of ACTIVATIONS."""
    layer_norm_epsilon: float = NORM_EPSILON
    scale_attn_weights: bool = True
    """Whether scores of attention are divided by the square root of a head's width."""
    scale_attn_by_inverse_layer_idx: bool = False
    """Whether they are divided by the number of the layer, from 1, too."""
    tie_word_embeddings: bool = True
    """Whether the last projection is the token embedding rather than a matrix `lm_head.weight`."""

    def problems(self) -> list[tuple[str, str]]:
        """What is wrong with it, as pairs of field and description."""
        found = []
        if self.activation_function not in ACTIVATIONS:
            found.append(("activation_function", f"must be one of {', '.join(ACTIVATIONS)}"))
        if not 0 < self.layer_norm_epsilon < 1:
            found.append(("layer_norm_epsilon", "must be over 0 and under 1"))
        return found

    def differences(self) -> dict[str, Any]:
        """What is not as GPT-2 has it, by name."""
        usual = asdict(Variant())
        return {name: value for name, value in asdict(self).items() if value != usual[name]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Variant":
        """Reads what `differences` returned, among other content. Raises ValueError when it is not that."""
        given = {name: content[name] for name in asdict(cls()) if name in content}
        for name, value in given.items():
            wanted = type(getattr(cls(), name))
            if type(value) is not wanted:
                raise ValueError(f"{name} is {value!r}, no {wanted.__name__}")
        return cls(**given)


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A GPT-2 with its vocabulary.

    Raises:
        ValueError: A size is not possible; the message names it.
    """

    layers: LayerSizes
    vocabulary_size: int
    end_token_id: int
    variant: Variant = field(default_factory=Variant)

    def __post_init__(self) -> None:
        found = self.layers.problems() + self.variant.problems()
        if not 1 <= self.vocabulary_size <= _MAX_VOCABULARY:
            found.append(("vocabulary_size", f"must be 1 to {_MAX_VOCABULARY:,}, not {self.vocabulary_size}"))
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

    def attention_factor(self, layer: int) -> float:
        """What scores of attention are multiplied with in a layer, counted from 0."""
        factor = 1 / math.sqrt(self.head_size) if self.variant.scale_attn_weights else 1.0
        return factor / (layer + 1) if self.variant.scale_attn_by_inverse_layer_idx else factor

    def to_json(self) -> dict[str, Any]:
        """The content of a checkpoint's `config.json`; a relative's has what differs from GPT-2 besides."""
        inner = {"n_inner": self.layers.n_inner} if self.layers.n_inner else {}
        return {
            "n_layer": self.layers.n_layer,
            "n_head": self.layers.n_head,
            "n_embd": self.layers.n_embd,
            "n_ctx": self.layers.n_ctx,
            "vocabulary_size": self.vocabulary_size,
            "end_token_id": self.end_token_id,
            **inner,
            **self.variant.differences(),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Architecture":
        """Reads what `to_json` made. Raises KeyError, TypeError or ValueError when it is not that."""
        names = ("n_layer", "n_head", "n_embd", "n_ctx", *(("n_inner",) if "n_inner" in content else ()))
        layers = LayerSizes.of(**{name: whole_number(content, name) for name in names})
        return cls(
            layers=layers,
            vocabulary_size=whole_number(content, "vocabulary_size"),
            end_token_id=whole_number(content, "end_token_id"),
            variant=Variant.from_json(content),
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
