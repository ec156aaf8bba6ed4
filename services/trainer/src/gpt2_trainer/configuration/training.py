"""How to train: every option of `TrainConfig` with its default filled in and its bounds checked."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from gpt2_trainer.configuration.dropout import DropoutRates
from gpt2_trainer.configuration.lora import LoraOptions
from gpt2_trainer.configuration.sampling import SamplingOptions

OptimizerName = Literal["adamw", "adam", "sgd", "adafactor"]
ScheduleName = Literal["cosine", "linear", "constant"]
Precision = Literal["float32", "bfloat16"]

OPTIMIZERS: tuple[OptimizerName, ...] = ("adamw", "adam", "sgd", "adafactor")
SCHEDULES: tuple[ScheduleName, ...] = ("cosine", "linear", "constant")
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")

Problems = list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingOptions:
    """Training parameters with nothing left open. Meanings and units: `TrainConfig` in the protocol."""

    steps: int
    """Updates made when the training ends, those of trainings that it continues among them."""
    first_step: int = 0
    """Updates made by trainings that it continues. The schedule of the learning rate begins after them."""
    batch_size: int = 8
    accumulate_gradients: int = 1
    context_length: int
    optimizer: OptimizerName = "adamw"
    learning_rate: float
    schedule: ScheduleName = "cosine"
    warmup_steps: int = 0
    final_learning_rate_fraction: float = 0.1
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    momentum: float = 0.0
    clip_norm: float = 1.0
    spike_factor: float = 10.0
    most_skipped_in_a_row: int = 10
    noise: float = 0.0
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    embedding_dropout: float = 0.0
    only_train_transformer_layers: bool = False
    lora: LoraOptions | None = None
    memory_saving_gradients: bool = False
    precision: Precision = "float32"
    validate_every: int
    validation_sequences: int = 64
    early_stopping_patience: int = 0
    early_stopping_min_delta: float = 0.0
    max_seconds: float = 0.0
    save_every: int
    keep_checkpoints: int = 2
    sample_every: int = 0
    sample_num: int = 1
    sample_length: int = 128
    sample_prompt: str = ""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    seed: int = 0
    report_every: int = 10
    devices: int = 0
    model_devices: int = 1

    @property
    def micro_batch_size(self) -> int:
        """Sequences that pass through the model at once."""
        return self.batch_size // self.accumulate_gradients

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one update learns from."""
        return self.batch_size * self.context_length

    @property
    def dropout_rates(self) -> DropoutRates:
        """Dropout by where in the network it applies."""
        return DropoutRates(
            attention=self.attention_dropout, residual=self.residual_dropout, embedding=self.embedding_dropout
        )

    def to_json(self) -> dict[str, Any]:
        """All options by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "TrainingOptions":
        """Reads what `to_json` made."""
        lora = LoraOptions.from_json(content["lora"]) if content.get("lora") else None
        return cls(**{**content, "sampling": SamplingOptions(**content["sampling"]), "lora": lora})

    def problems(self) -> Problems:
        """What is wrong with them, as pairs of field and description."""
        found = self.value_problems()
        if self.lora is not None and self.only_train_transformer_layers:
            found.append(("only_train_transformer_layers", "goes without lora, which trains no other weights"))
        if not found and self.batch_size % self.accumulate_gradients:
            near = max(n for n in range(1, self.accumulate_gradients + 1) if self.batch_size % n == 0)
            fitting = f"must divide batch_size, which is {self.batch_size}: {near} would"
            found.append(("accumulate_gradients", fitting))
        if not found:
            found += self._device_problems()
        if not found and self.warmup_steps > self.steps - self.first_step:
            steps = self.steps - self.first_step
            found.append(("warmup_steps", f"must be at most the {steps} steps of the training"))
        return found

    def value_problems(self) -> Problems:
        """What is wrong with single options, whatever the others are."""
        found = self._integer_problems() + self._number_problems() + self._choice_problems()
        found += [(f"sampling.{name}", description) for name, description in self.sampling.problems()]
        if self.lora is not None:
            found += [(f"lora.{name}", description) for name, description in self.lora.problems()]
        return found

    def _device_problems(self) -> Problems:
        if not self.devices:
            return []
        if self.devices % self.model_devices:
            return [("model_devices", f"must divide devices, which is {self.devices}")]
        copies = self.devices // self.model_devices
        if self.micro_batch_size % copies:
            text = (
                f"have {copies} copies of the model, which do not divide the {self.micro_batch_size} sequences at once"
            )
            return [("devices", text)]
        return []

    def _integer_problems(self) -> Problems:
        least = {
            "steps": 1,
            "batch_size": 1,
            "accumulate_gradients": 1,
            "context_length": 1,
            "warmup_steps": 0,
            "validate_every": 1,
            "validation_sequences": 1,
            "early_stopping_patience": 0,
            "most_skipped_in_a_row": 1,
            "save_every": 1,
            "keep_checkpoints": 1,
            "sample_every": 0,
            "sample_num": 1,
            "sample_length": 1,
            "report_every": 1,
            "devices": 0,
            "model_devices": 1,
        }
        return [(name, f"must be at least {low}") for name, low in least.items() if getattr(self, name) < low]

    def _number_problems(self) -> Problems:
        checks = (
            ("learning_rate", 0 < self.learning_rate < math.inf, "must be over 0"),
            ("final_learning_rate_fraction", 0 <= self.final_learning_rate_fraction <= 1, "must be from 0 to 1"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "must be 0 or greater"),
            ("beta1", 0 <= self.beta1 < 1, "must be from 0 to under 1"),
            ("beta2", 0 <= self.beta2 < 1, "must be from 0 to under 1"),
            ("epsilon", 0 < self.epsilon < math.inf, "must be over 0"),
            ("momentum", 0 <= self.momentum < 1, "must be from 0 to under 1"),
            (
                "spike_factor",
                self.spike_factor == 0 or 1 < self.spike_factor < math.inf,
                "must be 0 (no limit) or over 1",
            ),
            (
                "early_stopping_min_delta",
                0 <= self.early_stopping_min_delta < math.inf,
                "must be 0 or greater",
            ),
            ("max_seconds", 0 <= self.max_seconds < math.inf, "must be 0 (no limit) or greater"),
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
