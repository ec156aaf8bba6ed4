"""What our training step is built from, by the numbers of a benchmark's setting; imports no backend."""

from collections.abc import Mapping
from typing import Any

from gpt2_trainer.configuration.architecture import Architecture, LayerSizes
from gpt2_trainer.configuration.training import ResolvedTrainingConfig


def architecture_of(setting: Mapping[str, Any]) -> Architecture:
    """The model's sizes."""
    sizes = LayerSizes(**{name: setting[name] for name in ("n_layer", "n_head", "n_embd", "n_ctx")})
    return Architecture(layers=sizes, vocabulary_size=setting["vocabulary"], end_token_id=setting["vocabulary"] - 1)


def options_of(setting: Mapping[str, Any]) -> ResolvedTrainingConfig:
    """The training's configuration."""
    return ResolvedTrainingConfig(
        steps=100_000,
        validate_every=1000,
        save_every=1000,
        batch_size=setting["batch"],
        gradient_accumulation_steps=setting.get("accumulated", 1),
        context_length=setting["length"],
        precision=setting["precision"],
        learning_rate=1e-4,
        optimizer=setting.get("optimizer", "adamw"),
        momentum=setting.get("momentum", 0.0),
        warmup_steps=0,
        schedule="constant",
    )
