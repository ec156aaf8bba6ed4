"""How to train: every option of `TrainConfig` with its default filled in and its bounds checked."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from gpt2_trainer.configuration.sampling import SamplingOptions

OptimizerName = Literal["adamw", "adam", "sgd"]
ScheduleName = Literal["cosine", "linear", "constant"]
Precision = Literal["float32", "bfloat16"]

OPTIMIZERS: tuple[OptimizerName, ...] = ("adamw", "adam", "sgd")
SCHEDULES: tuple[ScheduleName, ...] = ("cosine", "linear", "constant")
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")

Problems = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingOptions:
    """Training parameters with nothing left open. Meanings and units: `TrainConfig` in the protocol."""

    steps: int
    batch_size: int = 8
    accumulate_gradients: int = 1
    context_length: int
    optimizer: OptimizerName = "adamw"
    learning_rate: float
    schedule: ScheduleName = "cosine"
    warmup_steps: int = 0
    final_learning_rate_fraction: float = 0.1
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    noise: float = 0.0
    only_train_transformer_layers: bool = False
    memory_saving_gradients: bool = False
    precision: Precision = "float32"
    validate_every: int
    validation_sequences: int = 64
    save_every: int
    keep_checkpoints: int = 2
    sample_every: int = 0
    sample_num: int = 1
    sample_length: int = 128
    sample_prompt: str = ""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    seed: int = 0
    report_every: int = 10

    @property
    def micro_batch_size(self) -> int:
        """Sequences that pass through the model at once."""
        return self.batch_size // self.accumulate_gradients

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one update learns from."""
        return self.batch_size * self.context_length

    def to_json(self) -> dict[str, Any]:
        """All options by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "TrainingOptions":
        """Reads what `to_json` made."""
        return cls(**{**content, "sampling": SamplingOptions(**content["sampling"])})

    def problems(self) -> Problems:
        """What is wrong with them, as pairs of field and description."""
        found = self._integer_problems() + self._number_problems() + self._choice_problems()
        found += [(f"sampling.{name}", description) for name, description in self.sampling.problems()]
        if not found and self.batch_size % self.accumulate_gradients:
            found.append(("accumulate_gradients", f"must divide batch_size, which is {self.batch_size}"))
        if not found and self.warmup_steps > self.steps:
            found.append(("warmup_steps", f"must be at most the {self.steps} steps of the training"))
        return found

    def _integer_problems(self) -> Problems:
        least = {
            "steps": 1,
            "batch_size": 1,
            "accumulate_gradients": 1,
            "context_length": 1,
            "warmup_steps": 0,
            "validate_every": 1,
            "validation_sequences": 1,
            "save_every": 1,
            "keep_checkpoints": 1,
            "sample_every": 0,
            "sample_num": 1,
            "sample_length": 1,
            "report_every": 1,
        }
        return [(name, f"must be at least {low}") for name, low in least.items() if getattr(self, name) < low]

    def _number_problems(self) -> Problems:
        checks = (
            ("learning_rate", 0 < self.learning_rate < math.inf, "must be over 0"),
            ("final_learning_rate_fraction", 0 <= self.final_learning_rate_fraction <= 1, "must be from 0 to 1"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "must be 0 or greater"),
            ("clip_norm", 0 <= self.clip_norm < math.inf, "must be 0 (no limit) or greater"),
            ("noise", 0 <= self.noise <= 1, "must be from 0 to 1"),
        )
        return [(name, description) for name, right, description in checks if not right]

    def _choice_problems(self) -> Problems:
        choices = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "precision": PRECISIONS}
        return [
            (name, f"must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
            for name, allowed in choices.items()
            if getattr(self, name) not in allowed
        ]
