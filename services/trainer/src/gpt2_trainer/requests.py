"""From requests to options: fills in defaults and finds everything wrong at once. Imports no framework."""

from collections.abc import Mapping
from typing import Any, cast

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_trainer.configuration.architecture import OFFICIAL_NAMES, PRESETS, LayerSizes
from gpt2_trainer.configuration.sampling import SamplingOptions
from gpt2_trainer.configuration.training import OptimizerName, Precision, Problems, ScheduleName, TrainingOptions

MOST_TOKENS = 1_000_000
MOST_SAMPLES = 64
MOST_STOPS = 16
_RATE_FROM_SCRATCH = 6e-4
_RATE_FROM_CHECKPOINT = 2e-5


def sampling_options(config: pb.SamplingConfig) -> SamplingOptions:
    """Sampling options with their defaults."""
    return SamplingOptions(
        temperature=config.temperature if config.HasField("temperature") else 1.0,
        top_k=config.top_k if config.HasField("top_k") else 40,
        top_p=config.top_p if config.HasField("top_p") else 1.0,
    )


def layer_sizes(request: pb.TrainModelRequest) -> LayerSizes | None:
    """Sizes of the new model that a training is to begin with; None when it begins with a checkpoint."""
    if request.WhichOneof("start") == "model":
        model = request.model
        return LayerSizes(n_layer=model.n_layer, n_head=model.n_head, n_embd=model.n_embd, n_ctx=model.n_ctx)
    if request.WhichOneof("start") == "model_size":
        return PRESETS[OFFICIAL_NAMES[request.model_size]]
    return None


def training_options(request: pb.TrainModelRequest, n_ctx: int) -> TrainingOptions:
    """Training options with their defaults.

    Args:
        request: The request.
        n_ctx: Longest context of the model.
    """
    config = request.config
    steps = config.steps
    optimizer = cast(OptimizerName, config.optimizer or "adamw")
    scratch = request.WhichOneof("start") != "checkpoint_uri"
    a_tenth = max(1, steps // 10)
    return TrainingOptions(
        steps=steps,
        batch_size=config.batch_size or 8,
        accumulate_gradients=config.accumulate_gradients or 1,
        context_length=config.context_length or n_ctx,
        optimizer=optimizer,
        learning_rate=config.learning_rate or (_RATE_FROM_SCRATCH if scratch else _RATE_FROM_CHECKPOINT),
        schedule=cast(ScheduleName, config.schedule or "cosine"),
        warmup_steps=_warmup_steps(config.warmup_steps, steps),
        final_learning_rate_fraction=_given(config, "final_learning_rate_fraction", 0.1),
        weight_decay=_given(config, "weight_decay", 0.1 if optimizer == "adamw" else 0.0),
        clip_norm=_given(config, "clip_norm", 1.0),
        noise=config.noise,
        only_train_transformer_layers=config.only_train_transformer_layers,
        memory_saving_gradients=config.memory_saving_gradients,
        precision=cast(Precision, config.precision or "float32"),
        validate_every=config.validate_every or a_tenth,
        validation_sequences=config.validation_sequences or 64,
        save_every=config.save_every or min(a_tenth, 1000),
        keep_checkpoints=config.keep_checkpoints or 2,
        sample_every=config.sample_every,
        sample_num=config.sample_num or 1,
        sample_length=config.sample_length or 128,
        sample_prompt=config.sample_prompt,
        sampling=sampling_options(config.sampling),
        seed=config.seed,
        report_every=config.report_every or 10,
    )


def train_problems(request: pb.TrainModelRequest) -> Problems:
    """What is wrong with a request for a training, as far as it alone can tell."""
    found = _required("dataset_uri", request.dataset_uri)
    n_ctx, start_problems = _start_problems(request)
    found += start_problems
    options = training_options(request, n_ctx or 1)
    found += [(f"config.{name}", description) for name, description in options.problems()]
    if n_ctx is not None:
        found += context_problems(options, n_ctx)
    config = request.config
    if config.HasField("weight_decay") and options.optimizer != "adamw":
        found.append(("config.weight_decay", f"goes with the optimizer adamw only, not with {options.optimizer!r}"))
    return found


def context_problems(options: TrainingOptions, n_ctx: int) -> Problems:
    """Whether the sequences fit the model."""
    if options.context_length <= n_ctx:
        return []
    return [("config.context_length", f"must be at most {n_ctx}, the positions that the model has")]


def import_problems(request: pb.ImportCheckpointRequest) -> Problems:
    """What is wrong with a request for an import, as far as it alone can tell."""
    source = request.WhichOneof("source")
    if source is None:
        return [("source", "is required: openai_model or uri")]
    if source == "openai_model":
        return _size_problems("openai_model", request.openai_model)
    return _required("uri", request.uri)


def export_problems(request: pb.ExportModelRequest) -> Problems:
    """What is wrong with a request for an export, as far as it alone can tell."""
    return _required("checkpoint_uri", request.checkpoint_uri)


def generate_problems(request: pb.GenerateRequest) -> Problems:
    """What is wrong with a request for text, as far as it alone can tell."""
    found = _required("model_uri", request.model_uri)
    if not 0 <= request.max_tokens <= MOST_TOKENS:
        found.append(("max_tokens", f"must be from 1 to {MOST_TOKENS:,}"))
    if not 0 <= request.samples <= MOST_SAMPLES:
        found.append(("samples", f"must be from 1 to {MOST_SAMPLES}"))
    if len(request.stop) > MOST_STOPS:
        found.append(("stop", f"must be at most {MOST_STOPS} texts"))
    found += [(f"stop[{number}]", "must not be empty") for number, stop in enumerate(request.stop) if not stop]
    sampling = sampling_options(request.sampling)
    return found + [(f"sampling.{name}", description) for name, description in sampling.problems()]


def _start_problems(request: pb.TrainModelRequest) -> tuple[int | None, Problems]:
    """The model's longest context, where the request tells, and what is wrong with what to begin with."""
    start = request.WhichOneof("start")
    if start is None:
        return None, [("start", "is required: model, model_size or checkpoint_uri")]
    if start == "checkpoint_uri":
        return None, _required("checkpoint_uri", request.checkpoint_uri)
    if start == "model_size" and (found := _size_problems("model_size", request.model_size)):
        return None, found
    sizes = layer_sizes(request)
    found = [(f"model.{name}", description) for name, description in sizes.problems()] if sizes else []
    return (sizes.n_ctx if sizes and not found else None), found


def _size_problems(field: str, name: str) -> Problems:
    if name in OFFICIAL_NAMES:
        return []
    return [(field, f"must be one of {', '.join(OFFICIAL_NAMES)}, not {name!r}")]


def _required(field: str, value: str) -> Problems:
    return [] if value else [(field, "is required")]


def _warmup_steps(given: int, steps: int) -> int:
    if given == 0:
        return steps * 5 // 100
    return 0 if given == -1 else given


def _given(config: Any, name: str, default: float) -> float:
    """An optional field's value, which may be 0."""
    value: float = getattr(config, name)
    return value if config.HasField(name) else default


def as_table(options: TrainingOptions) -> Mapping[str, Any]:
    """Options by name in one level, for people."""
    content = options.to_json()
    sampling = content.pop("sampling")
    return content | {f"sampling.{name}": value for name, value in sampling.items()}
