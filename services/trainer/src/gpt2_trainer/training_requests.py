"""From requests for trainings to options: fills in defaults and finds everything wrong at once.

Imports no framework, and looks at nothing but the request and, where they are known, the sizes of its inputs.
"""

import math
from collections.abc import Mapping
from typing import Any, cast

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_trainer.configuration.architecture import OFFICIAL_NAMES, PRESETS, LayerSizes
from gpt2_trainer.configuration.lora import TARGETS, LoraOptions
from gpt2_trainer.configuration.training import OptimizerName, Precision, Problems, ScheduleName, TrainingOptions
from gpt2_trainer.requests import required, sampling_options, size_problems

_RATE_FROM_SCRATCH = 6e-4
_RATE_FROM_CHECKPOINT = 2e-5
_BATCH_SIZE = 8
_LORA_RANK = 8
# Stand-ins for what a request alone does not tell: the data's size, and with it the steps of an epoch; a checkpoint's
# longest context. Great enough that no other option seems too great beside them.
_MANY_WINDOWS = 1 << 31
_LONG_CONTEXT = 1 << 20
# betas of AdamW as GPT-3's paper and today's GPT-2 trainings have them; Adam's as its paper.
_BETA2: Mapping[str, float] = {"adamw": 0.95, "adam": 0.999}
_DROPOUTS = ("dropout", "attention_dropout", "residual_dropout", "embedding_dropout")
_ADAMS = ("adamw", "adam")
_DECAYS: Mapping[str, float] = {"adamw": 0.1, "adafactor": 0.0}
_OPTIMIZERS_OF: Mapping[str, tuple[str, ...]] = {
    "weight_decay": tuple(_DECAYS),
    "beta1": _ADAMS,
    "beta2": _ADAMS,
    "epsilon": _ADAMS,
    "momentum": ("sgd",),
}


def layer_sizes(request: pb.TrainModelRequest) -> LayerSizes | None:
    """Sizes of the new model that a training is to begin with; None when it begins with a checkpoint."""
    if request.WhichOneof("start") == "model":
        model = request.model
        sizes = {name: getattr(model, name) for name in ("n_layer", "n_head", "n_embd", "n_ctx", "n_inner")}
        return LayerSizes.of(**sizes)
    if request.WhichOneof("start") == "model_size":
        return PRESETS[OFFICIAL_NAMES[request.model_size]]
    return None


def training_options(request: pb.TrainModelRequest, n_ctx: int, train_tokens: int | None) -> TrainingOptions:
    """Training options with their defaults.

    Args:
        request: The request.
        n_ctx: Longest context of the model.
        train_tokens: Tokens of the train split; None: not known yet, and a training in epochs has far too many steps.
    """
    config = request.config
    context_length = config.context_length or n_ctx
    in_tokens = max(1, config.batch_tokens // max(context_length, 1)) if config.batch_tokens else _BATCH_SIZE
    batch_size = config.batch_size or in_tokens
    steps = config.steps or _steps_of(config.epochs, train_tokens, context_length, batch_size)
    optimizer = cast(OptimizerName, config.optimizer or "adamw")
    scratch = request.WhichOneof("start") not in ("checkpoint_uri", "continue_uri")
    a_tenth = max(1, steps // 10)
    micro_batch_size = config.micro_batch_size
    return TrainingOptions(
        steps=steps,
        batch_size=batch_size,
        accumulate_gradients=config.accumulate_gradients
        or (max(1, batch_size // micro_batch_size) if micro_batch_size > 0 else 1),
        context_length=context_length,
        optimizer=optimizer,
        learning_rate=config.learning_rate or (_RATE_FROM_SCRATCH if scratch else _RATE_FROM_CHECKPOINT),
        schedule=cast(ScheduleName, config.schedule or "cosine"),
        warmup_steps=_warmup_steps(config.warmup_steps, steps),
        final_learning_rate_fraction=_given(config, "final_learning_rate_fraction", 0.1),
        weight_decay=_given(config, "weight_decay", _DECAYS.get(optimizer, 0.0)),
        beta1=_given(config, "beta1", 0.9),
        beta2=_given(config, "beta2", _BETA2.get(optimizer, 0.999)),
        epsilon=_given(config, "epsilon", 1e-8),
        momentum=config.momentum,
        clip_norm=_given(config, "clip_norm", 1.0),
        spike_factor=_given(config, "spike_factor", 10.0),
        most_skipped_in_a_row=config.most_skipped_in_a_row or 10,
        noise=config.noise,
        attention_dropout=_given(config, "attention_dropout", config.dropout),
        residual_dropout=_given(config, "residual_dropout", config.dropout),
        embedding_dropout=_given(config, "embedding_dropout", config.dropout),
        only_train_transformer_layers=config.only_train_transformer_layers,
        lora=_lora_options(config.lora) if config.HasField("lora") else None,
        memory_saving_gradients=config.memory_saving_gradients,
        precision=cast(Precision, config.precision or "float32"),
        validate_every=config.validate_every or a_tenth,
        validation_sequences=config.validation_sequences or 64,
        early_stopping_patience=config.early_stopping_patience,
        early_stopping_min_delta=config.early_stopping_min_delta,
        max_seconds=config.max_seconds,
        save_every=config.save_every or min(a_tenth, 1000),
        keep_checkpoints=config.keep_checkpoints or 2,
        sample_every=config.sample_every,
        sample_num=config.sample_num or 1,
        sample_length=config.sample_length or 128,
        sample_prompt=config.sample_prompt,
        sampling=sampling_options(config.sampling),
        seed=config.seed,
        report_every=config.report_every or 10,
        devices=config.devices,
        model_devices=config.model_devices or 1,
    )


def train_problems(request: pb.TrainModelRequest) -> Problems:
    """What is wrong with a request for a training, as far as it alone can tell."""
    found = required("dataset_uri", request.dataset_uri)
    n_ctx, start_problems = _start_problems(request)
    found += start_problems + _choice_problems(request.config)
    if request.WhichOneof("start") == "continue_uri":
        # Most defaults, and with them what fits together, come from the training that is continued.
        options = training_options(request, _LONG_CONTEXT, None)
        return found + [(f"config.{name}", text) for name, text in options.value_problems()]
    found += optimizer_problems(request.config, request.config.optimizer or "adamw")
    if n_ctx is not None or request.config.context_length:
        found += _batch_problems(request.config, n_ctx)
    options = training_options(request, n_ctx or _LONG_CONTEXT, None)
    reported = {name for name, _ in found}
    found += [(f"config.{name}", text) for name, text in options.problems() if f"config.{name}" not in reported]
    if n_ctx is not None:
        found += context_problems(options, n_ctx)
    return found


def sized_problems(request: pb.TrainModelRequest, options: TrainingOptions, layers: LayerSizes) -> Problems:
    """What is wrong with a training, now that the sizes of the model and of the data are known.

    Args:
        request: The request; nothing is wrong with it by itself.
        options: Its options.
        layers: Sizes of the model.
    """
    found = [(f"config.{name}", description) for name, description in options.problems()]
    found += context_problems(options, layers.n_ctx) or _batch_problems(request.config, layers.n_ctx)
    if options.lora is not None and options.lora.rank > layers.n_embd:
        found.append(("config.lora.rank", f"must be at most {layers.n_embd}, the model's n_embd"))
    return found


def device_problems(request: pb.TrainModelRequest, backend: str) -> Problems:
    """Whether a backend of Keras can train on as many devices as are asked for."""
    asked = max(request.config.devices, request.config.model_devices)
    if asked < 2 or backend == "jax":
        return []
    field = "devices" if request.config.devices > 1 else "model_devices"
    text = f"of several devices needs Keras on JAX, and this service trains on {backend}: set KERAS_BACKEND=jax"
    return [(f"config.{field}", text)]


def trainjob_problems(request: pb.TrainModelRequest, gpus: int) -> Problems:
    """Whether a TrainJob has as many GPUs as are asked for; one without any has one device, its processors."""
    asked = max(request.config.devices, request.config.model_devices)
    if asked <= max(1, gpus):
        return []
    field = "devices" if request.config.devices > max(1, gpus) else "model_devices"
    return [
        (f"config.{field}", f"must be at most {max(1, gpus)}: the service gives a TrainJob GPT2_TRAINJOB_GPUS={gpus}")
    ]


def context_problems(options: TrainingOptions, n_ctx: int) -> Problems:
    """Whether the sequences fit the model."""
    if options.context_length <= n_ctx:
        return []
    return [("config.context_length", f"must be at most {n_ctx}, the positions that the model has")]


def optimizer_problems(config: pb.TrainConfig, optimizer: str) -> Problems:
    """Whether options are given that an optimizer does not have."""
    found: Problems = []
    for name, optimizers in _OPTIMIZERS_OF.items():
        if config.HasField(name) and optimizer not in optimizers:  # type: ignore[arg-type]
            allowed = " and ".join(optimizers)
            found.append((f"config.{name}", f"goes with the optimizer {allowed} only, not with {optimizer!r}"))
    return found


def as_table(options: TrainingOptions) -> dict[str, Any]:
    """Options by name in one level, for people."""
    content = options.to_json()
    table = {name: value for name, value in content.items() if not isinstance(value, dict) and value is not None}
    for group in ("sampling", "lora"):
        table |= {f"{group}.{name}": value for name, value in (content[group] or {}).items()}
    return table


def _steps_of(epochs: float, train_tokens: int | None, context_length: int, batch_size: int) -> int:
    if not epochs:
        return 0
    if train_tokens is None or not 0 < epochs < math.inf:
        return _MANY_WINDOWS
    return math.ceil(epochs * max(0, (train_tokens - 1) // context_length) / batch_size)


def _lora_options(config: pb.LoraConfig) -> LoraOptions:
    rank = config.rank or _LORA_RANK
    return LoraOptions(rank=rank, alpha=config.alpha or 2.0 * max(rank, 1), targets=tuple(config.targets) or TARGETS)


def _choice_problems(config: Any) -> Problems:
    """Whether options are given that leave each other no room."""
    found: Problems = []
    if bool(config.steps) == bool(config.epochs):
        found.append(("config.steps", "is required, or epochs" if not config.steps else "goes without epochs"))
    elif config.epochs and not 0 < config.epochs < math.inf:
        found.append(("config.epochs", "must be over 0"))
    for first, second in (("batch_size", "batch_tokens"), ("accumulate_gradients", "micro_batch_size")):
        if getattr(config, first) and getattr(config, second):
            found.append((f"config.{second}", f"goes without {first}"))
    for name in _DROPOUTS:
        if not 0 <= getattr(config, name) < 1:
            found.append((f"config.{name}", f"must be from 0 to under 1, not {getattr(config, name):g}"))
    return found


def _batch_problems(config: pb.TrainConfig, n_ctx: int | None) -> Problems:
    """Whether batches divide as they should. The context length must be known."""
    length = config.context_length or n_ctx or 1
    if length < 1:
        return []  # Said where options are checked.
    size, size_field = config.batch_size or _BATCH_SIZE, "batch_size"
    if config.batch_tokens:
        size, size_field = config.batch_tokens // length, "batch_tokens"
        if config.batch_tokens < 0 or size < 1 or config.batch_tokens % length:
            below = max(length, config.batch_tokens // length * length)
            return [("config.batch_tokens", f"must be a multiple of the context_length {length}: {below} would be one")]
    micro = config.micro_batch_size
    if micro < 0 or (micro and (size % micro or size < micro)):
        fitting = max((number for number in range(1, max(micro, 1) + 1) if size % number == 0), default=1)
        return [
            (
                "config.micro_batch_size",
                f"must divide the {size} sequences that {size_field} makes an update of: {fitting} would",
            )
        ]
    return []


def _start_problems(request: pb.TrainModelRequest) -> tuple[int | None, Problems]:
    """The model's longest context, where the request tells, and what is wrong with what to begin with."""
    start = request.WhichOneof("start")
    if start is None:
        return None, [("start", "is required: model, model_size, checkpoint_uri or continue_uri")]
    if start in ("checkpoint_uri", "continue_uri"):
        return None, required(start, getattr(request, start))
    if start == "model_size" and (found := size_problems("model_size", request.model_size)):
        return None, found
    sizes = layer_sizes(request)
    found = [(f"model.{name}", description) for name, description in sizes.problems()] if sizes else []
    return (sizes.n_ctx if sizes and not found else None), found


def _warmup_steps(given: int, steps: int) -> int:
    if given == 0:
        return max(steps, 0) * 5 // 100
    return 0 if given == -1 else given


def _given(config: Any, name: str, default: float) -> float:
    """An optional field's value, which may be 0."""
    value: float = getattr(config, name)
    return value if config.HasField(name) else default
