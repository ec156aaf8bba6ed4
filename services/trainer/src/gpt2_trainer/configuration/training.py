"""The resolved configuration of a training: `TrainConfig` of the request with every default filled in."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_rules import content_violations
from gpt2_trainer.configuration.earlier_names import CONFIG_NAMES
from gpt2_trainer.configuration.sampling import SamplingConfig

OptimizerName = Literal["adamw", "adam", "sgd", "adafactor", "muon"]
ScheduleName = Literal["cosine", "linear", "constant", "wsd"]
CooldownName = Literal["linear", "1-sqrt"]
WeightDecayScheduleName = Literal["constant", "linear"]
RecipeName = Literal["scratch", "small_data"]
Precision = Literal["float32", "bfloat16"]

Problems = list[tuple[str, str]]
"""Pairs of a field of the request and what is wrong with it."""

DEFAULT_BATCH_SIZE = 8
OPTIMIZERS_WITH_WEIGHT_DECAY: tuple[OptimizerName, ...] = ("adamw", "adafactor", "muon")

TARGETS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
"""Weight matrices of a layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """Parameters of low-rank adaptation, as `LoraConfig` in the protocol describes them."""

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = TARGETS

    @property
    def scale(self) -> float:
        """Factor of the product A B."""
        return self.alpha / self.rank

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "LoraConfig":
        """Reads what `dataclasses.asdict` returned, also after JSON, which has no tuples.

        Raises:
            KeyError, TypeError, ValueError: The content is something else.
        """
        if broken := content_violations(pb.LoraConfig.DESCRIPTOR, content):
            raise ValueError("; ".join(f"lora.{name} {description}" for name, description in broken))
        return cls(**{**content, "targets": tuple(content["targets"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class DropoutRates:
    """Fractions from 0 to under 1, as `attn_pdrop`, `resid_pdrop` and `embd_pdrop` of `transformers`."""

    attention: float = 0.0
    residual: float = 0.0
    embedding: float = 0.0

    def __bool__(self) -> bool:
        """Whether any rate is over 0."""
        return bool(self.attention or self.residual or self.embedding)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedTrainingConfig:
    """How a training runs; None stands for "no limit" and "none". Meanings and units: `TrainConfig` in the protocol.

    `configuration/resolution.py` makes it from a request, once. The defaults here are those of requests too; defaults
    that depend on other values are in that module.
    """

    steps: int
    """Updates after which the training ends, including those of the trainings that it continues."""
    first_step: int = 0
    """Updates made by the trainings that it continues. The learning-rate schedule starts after them."""
    batch_size: int = DEFAULT_BATCH_SIZE
    gradient_accumulation_steps: int = 1
    context_length: int
    recipe: RecipeName | None = None
    """The recipe whose defaults the other options have."""
    optimizer: OptimizerName = "adamw"
    learning_rate: float
    schedule: ScheduleName = "cosine"
    warmup_steps: int = 0
    final_learning_rate_fraction: float = 0.1
    cooldown_steps: int | None = None
    """None: the schedule has no cooldown."""
    cooldown: CooldownName = "1-sqrt"
    weight_decay: float = 0.1
    weight_decay_schedule: WeightDecayScheduleName = "constant"
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    momentum: float = 0.0
    clip_norm: float | None = 1.0
    spike_factor: float | None = 10.0
    max_consecutive_skipped_updates: int = 10
    noise: float = 0.0
    reshuffle_documents: bool = False
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    embedding_dropout: float = 0.0
    ema_decay: float = 0.0
    only_train_transformer_layers: bool = False
    embeddings_only_steps: int = 0
    lora: LoraConfig | None = None
    gradient_checkpointing: bool = False
    precision: Precision = "float32"
    validate_every: int
    validation_sequences: int = 64
    early_stopping_patience: int | None = None
    early_stopping_min_delta: float = 0.0
    max_seconds: float | None = None
    save_every: int
    keep_checkpoints: int = 2
    sample_every: int | None = None
    """None: samples after the last step only."""
    sample_num: int = 1
    sample_length: int = 128
    sample_prompt: str = ""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    seed: int = 0
    log_every: int = 10
    devices: int | None = None
    """Of each node. None: as many as divide a micro-batch evenly."""
    model_devices: int = 1
    num_nodes: int = 1

    @property
    def micro_batch_size(self) -> int:
        """Sequences in one forward and backward pass."""
        return self.batch_size // self.gradient_accumulation_steps

    @property
    def tokens_per_step(self) -> int:
        """Tokens in the batch of one update."""
        return self.batch_size * self.context_length

    @property
    def dropout_rates(self) -> DropoutRates:
        """Dropout rates by place in the network."""
        return DropoutRates(
            attention=self.attention_dropout, residual=self.residual_dropout, embedding=self.embedding_dropout
        )

    def to_json(self) -> dict[str, Any]:
        """All values by name, as a checkpoint's `state.json` and a job's `config.json` hold them."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "ResolvedTrainingConfig":
        """Reads what `to_json` of this or an earlier version returned.

        Raises:
            KeyError, TypeError, ValueError: The content is something else.
        """
        content = {CONFIG_NAMES.get(name, name): value for name, value in content.items()}
        if broken := content_violations(pb.TrainConfig.DESCRIPTOR, content):
            raise ValueError("; ".join(f"{name} {description}" for name, description in broken))
        unlimited = {name: None for name in ZERO_IS_NONE if name in content and not content[name]}
        lora = LoraConfig.from_json(content["lora"]) if content.get("lora") else None
        return cls(**{**content, **unlimited, "sampling": SamplingConfig(**content["sampling"]), "lora": lora})

    def hyperparameters(self) -> dict[str, Any]:
        """Values by name in one level, without those that are None."""
        content = self.to_json()
        table = {name: value for name, value in content.items() if not isinstance(value, dict) and value is not None}
        for group in ("sampling", "lora"):
            table |= {f"{group}.{name}": value for name, value in (content[group] or {}).items()}
        return table


ZERO_IS_NONE = (
    "clip_norm",
    "cooldown_steps",
    "spike_factor",
    "early_stopping_patience",
    "max_seconds",
    "sample_every",
    "devices",
)
"""Fields whose 0, in a request and in checkpoints of earlier versions, is None here."""

MAX_LOGITS = 1 << 28
"""Logits that may exist at one time in a loss: 1 GiB in float32."""


def count_chunks(tokens: int, vocabulary_size: int, max_logits: int = MAX_LOGITS) -> int:
    """Equal chunks that the loss divides a batch's tokens into: the fewest with at most `max_logits` logits each."""
    fitting = (n for n in range(1, tokens) if tokens % n == 0 and tokens // n * vocabulary_size <= max_logits)
    return next(fitting, tokens)
