"""Resolves the request for a training into its one configuration: the only place with defaults that depend on others.

A training is resolved when the sizes of its inputs are known, at admission to check it and in its job's first attempt.
"""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_trainer.configuration.architecture import OFFICIAL_NAMES, PRESETS, LayerSizes
from gpt2_trainer.configuration.recipes import COOLDOWN_PERCENT
from gpt2_trainer.configuration.sampling import resolve_sampling_config
from gpt2_trainer.configuration.training import DEFAULT_BATCH_SIZE, ZERO_IS_NONE, LoraConfig, ResolvedTrainingConfig

_LEARNING_RATE = 6e-4
_FINE_TUNING_LEARNING_RATE = 2e-5
_MUON_LEARNING_RATE = 3e-3
_MUON_MOMENTUM = 0.95
_NOT_INHERITED = (
    "recipe",
    "steps",
    "cooldown_steps",
    "early_stopping_patience",
    "early_stopping_min_delta",
    "max_seconds",
    "num_nodes",
)
"""Fields of one training that the trainings which continue it do not take over."""
ALTERNATIVE_FIELDS = {
    "batch_size": "batch_tokens",
    "gradient_accumulation_steps": "micro_batch_size",
    "attention_dropout": "dropout",
    "residual_dropout": "dropout",
    "embedding_dropout": "dropout",
}
"""Fields of a request that set another field's value too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSizes:
    """Sizes of a training that depend on each other; None where an input that is not open yet decides."""

    context_length: int | None
    batch_size: int | None
    gradient_accumulation_steps: int | None
    steps: int | None
    """Updates of this training alone."""


def new_layer_sizes(request: pb.TrainModelRequest) -> LayerSizes | None:
    """Sizes of the new model that a training starts with; None when it starts with a checkpoint."""
    if request.WhichOneof("start") == "model":
        model = request.model
        sizes = {name: getattr(model, name) for name in ("n_layer", "n_head", "n_embd", "n_ctx", "n_inner")}
        return LayerSizes.of(**sizes)
    if request.WhichOneof("start") == "model_size":
        return PRESETS[OFFICIAL_NAMES[request.model_size]]
    return None


def resolve_sizes(config: pb.TrainConfig, n_ctx: int | None, train_tokens: int | None) -> TrainingSizes:
    """Resolves the sizes of a training as far as they are known; arguments as of `resolve_training_config`."""
    context_length = config.context_length or n_ctx
    batch_size: int | None = config.batch_size or DEFAULT_BATCH_SIZE
    if config.batch_tokens and not config.batch_size:
        batch_size = max(1, config.batch_tokens // context_length) if context_length else None
    accumulation: int | None = config.gradient_accumulation_steps or 1
    if config.micro_batch_size and not config.gradient_accumulation_steps:
        accumulation = max(1, batch_size // config.micro_batch_size) if batch_size else None
    steps: int | None = config.steps or None
    if steps is None and train_tokens is not None and context_length and batch_size:
        sequences = (train_tokens - 1) // context_length
        steps = max(1, math.ceil(config.epochs * sequences / batch_size))
    return TrainingSizes(
        context_length=context_length, batch_size=batch_size, gradient_accumulation_steps=accumulation, steps=steps
    )


def resolve_training_config(
    request: pb.TrainModelRequest,
    n_ctx: int,
    train_tokens: int,
    continued: ResolvedTrainingConfig | None = None,
    first_step: int = 0,
) -> ResolvedTrainingConfig:
    """Resolves a request into the configuration of its training.

    Args:
        request: The request; `gpt2_trainer.validation` finds nothing wrong with it.
        n_ctx: Positions of the model.
        train_tokens: Tokens in the train split.
        continued: Configuration of the training that it continues, whose values replace the defaults.
        first_step: Updates made by the trainings that it continues.
    """
    config = request.config if continued is None else inherit(request.config, continued)
    sizes = resolve_sizes(config, n_ctx, train_tokens)
    if sizes.context_length is None or sizes.batch_size is None or sizes.steps is None:
        raise AssertionError("n_ctx and train_tokens decide every size")
    names = {field.name for field in fields(ResolvedTrainingConfig)}
    given: dict[str, Any] = {field.name: value for field, value in config.ListFields() if field.name in names}
    given |= {name: given[name] or None for name in ZERO_IS_NONE if name in given}
    new = request.WhichOneof("start") not in ("checkpoint_uri", "continue_uri")
    tenth = max(1, sizes.steps // 10)
    defaults: dict[str, Any] = {
        "learning_rate": _LEARNING_RATE if new else _FINE_TUNING_LEARNING_RATE,
        "attention_dropout": config.dropout,
        "residual_dropout": config.dropout,
        "embedding_dropout": config.dropout,
        "validate_every": tenth,
        "save_every": min(tenth, 1000),
    }
    if config.schedule == "wsd":
        percent = COOLDOWN_PERCENT if config.recipe else 20
        defaults |= {"final_learning_rate_fraction": 0.0, "cooldown_steps": max(1, sizes.steps * percent // 100)}
    if config.optimizer == "muon":
        defaults["momentum"] = _MUON_MOMENTUM
        if new:
            defaults["learning_rate"] = _MUON_LEARNING_RATE
    elif config.optimizer not in ("", "adamw"):
        # Those of the configuration are AdamW's, as in GPT-3's paper; these are Adam's, as in its paper.
        defaults |= {"beta2": 0.999, "weight_decay": 0.0}
    resolved: dict[str, Any] = {
        "steps": first_step + sizes.steps,
        "first_step": first_step,
        "batch_size": sizes.batch_size,
        "gradient_accumulation_steps": sizes.gradient_accumulation_steps,
        "context_length": sizes.context_length,
        "warmup_steps": max(0, config.warmup_steps or sizes.steps * 5 // 100),
        "lora": _resolve_lora(config.lora) if config.HasField("lora") else None,
        "sampling": resolve_sampling_config(config.sampling),
    }
    return ResolvedTrainingConfig(**defaults | given | resolved)


def inherit(config: pb.TrainConfig, continued: ResolvedTrainingConfig) -> pb.TrainConfig:
    """A request's configuration with the fields that it leaves out as they are in the training that it continues."""
    values = {name: value for name, value in asdict(continued).items() if name in config.DESCRIPTOR.fields_by_name}
    # None is what a field without presence has; the others have a default that is not 0.
    values |= {name: 0 for name in ("clip_norm", "spike_factor") if values[name] is None}
    inherited = pb.TrainConfig(**values)
    given = {field.name for field, _ in config.ListFields()}
    given |= {name for name, alternative in ALTERNATIVE_FIELDS.items() if alternative in given}
    for name in (*_NOT_INHERITED, *given & values.keys()):
        inherited.ClearField(name)
    # The optimizer's state is warm: by default the learning rate does not rise again.
    inherited.warmup_steps = -1
    inherited.MergeFrom(config)
    return inherited


def _resolve_lora(config: pb.LoraConfig) -> LoraConfig:
    given: dict[str, Any] = {field.name: value for field, value in config.ListFields()}
    rank = config.rank or LoraConfig().rank
    targets = {"targets": tuple(config.targets)} if config.targets else {}
    return LoraConfig(**{"alpha": 2.0 * rank, **given, **targets})
