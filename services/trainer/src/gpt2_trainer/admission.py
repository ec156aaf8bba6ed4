"""Checks a training against the sizes of its inputs before its job is created, and resolves its configuration.

Only small files are read. What does not exist yet, or cannot be read, is left for the job to find.
"""

import json
import logging
from typing import Any

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.artifacts import ArtifactStore
from gpt2_common.artifacts.roots import filesystem_of
from gpt2_common.artifacts.store import parse_file
from gpt2_common.errors import InvalidRequest, PipelineError
from gpt2_contracts.artifact import CHECKPOINT, DATASET
from gpt2_contracts.dataset import TRAIN, VALIDATION, DatasetDescription
from gpt2_trainer.configuration.architecture import Architecture, LayerSizes, Variant
from gpt2_trainer.configuration.recipes import AUTO, choose_recipe, with_recipe
from gpt2_trainer.configuration.resolution import (
    ALTERNATIVE_FIELDS,
    inherit,
    new_layer_sizes,
    resolve_sizes,
    resolve_training_config,
)
from gpt2_trainer.configuration.training import Problems, ResolvedTrainingConfig
from gpt2_trainer.formats.checkpoint import CONFIG, LAST, STATE, TrainingState
from gpt2_trainer.memory import device_memory, memory_problems
from gpt2_trainer.model.weights import count_parameters
from gpt2_trainer.training.data import too_short
from gpt2_trainer.validation import embeddings_only_problems, optimizer_problems, option_problems, size_problems

NOTHING_TO_CONTINUE = (
    "is no checkpoint of a finished training with its optimizer's state: name it in checkpoint_uri, to begin a new "
    "training with its weights"
)
_FIXED = (
    "seed",
    "batch_size",
    "context_length",
    "optimizer",
    "momentum",
    "reshuffle_documents",
    "ema_decay",
    "only_train_transformer_layers",
    "embeddings_only_steps",
    "lora",
    "validation_sequences",
)
"""Fields that the order of the data, the optimizer's state or the comparison of losses depends on."""
_log = logging.getLogger(__name__)


def admission_problems(request: pb.TrainModelRequest, artifacts: ArtifactStore, memory_bytes: int) -> Problems:
    """What is wrong with a training, as far as the sizes of its inputs tell.

    Args:
        request: The request; `gpt2_trainer.validation` finds nothing wrong with it.
        artifacts: Where its inputs are.
        memory_bytes: Memory of the device, where a setting gives it; 0: ask the device.
    """
    try:
        dataset = _read_dataset(artifacts, request.dataset_uri)
        start = new_layer_sizes(request) or _architecture_of(artifacts, request)
        before = None
        if request.WhichOneof("start") == "continue_uri":
            digest = artifacts.read_manifest("dataset_uri", request.dataset_uri, DATASET)[1].digest
            before = TrainingState.from_json(_read_state(artifacts, request.continue_uri))
            require_continuable(request, before, digest)
        config = admit_training(request, start, dataset, before)
        layers, variant = (start, Variant()) if isinstance(start, LayerSizes) else (start.layers, start.variant)
        architecture = new_architecture(layers, dataset, variant)
        return memory_problems(architecture, config, device_memory(memory_bytes))
    except InvalidRequest as error:
        return list(error.violations)
    except (PipelineError, OSError, ValueError, KeyError, TypeError) as error:
        _log.info("the training is not checked against its inputs, which cannot be read yet: %s", error)
        return []


def admit_training(
    request: pb.TrainModelRequest,
    start: LayerSizes | Architecture,
    dataset: DatasetDescription,
    before: TrainingState | None = None,
) -> ResolvedTrainingConfig:
    """Resolves a training's configuration.

    Args:
        request: The request; `gpt2_trainer.validation` finds nothing wrong with it.
        start: Sizes of a new model, or the architecture of the one to begin with.
        dataset: The dataset.
        before: The state of the training that it continues, if any; `require_continuable` accepts it.

    Raises:
        InvalidRequest: It does not fit its inputs.
    """
    layers = start if isinstance(start, LayerSizes) else start.layers
    request = _with_recipe(request, start, dataset)
    continued = _config_of(before) if before else None
    given = inherit(request.config, continued) if continued else request.config
    found = size_problems(given, layers.n_ctx, dataset.train.tokens)
    if not continued:
        found += option_problems(request.config)
    config = resolve_training_config(
        request, layers.n_ctx, dataset.train.tokens, continued, before.step if before else 0
    )
    for split, tokens in {TRAIN: dataset.train.tokens, VALIDATION: dataset.validation.tokens}.items():
        if problems := too_short(tokens, config.context_length, split):
            raise InvalidRequest(problems)
    if continued is None:
        found += embeddings_only_problems(given, config.steps)
    if config.lora is not None and config.lora.rank > layers.n_embd:
        found.append(("config.lora.rank", f"must be at most {layers.n_embd}, the model's n_embd"))
    if found:
        raise InvalidRequest(found)
    return config


def _with_recipe(
    request: pb.TrainModelRequest, start: LayerSizes | Architecture, dataset: DatasetDescription
) -> pb.TrainModelRequest:
    """The request with the defaults of its recipe, chosen where it asks for `auto`."""
    recipe = request.config.recipe
    if recipe == AUTO:
        layers = start if isinstance(start, LayerSizes) else start.layers
        architecture = new_architecture(layers, dataset)
        sizes = resolve_sizes(request.config, layers.n_ctx, dataset.train.tokens)
        tokens = (sizes.steps or 0) * (sizes.batch_size or 0) * (sizes.context_length or 0)
        is_new = new_layer_sizes(request) is not None
        choice = choose_recipe(is_new, count_parameters(architecture), dataset.train.tokens, tokens)
        recipe = choice.recipe
        _log.info("recipe: auto is %s here (%s)", recipe or "none", choice.reason)
    chosen = pb.TrainModelRequest()
    chosen.CopyFrom(request)
    chosen.config.CopyFrom(with_recipe(request.config, recipe))
    return chosen


def require_continuable(request: pb.TrainModelRequest, before: TrainingState, dataset_digest: str) -> None:
    """Requires that a request can continue a training.

    Args:
        request: The request; `gpt2_trainer.validation` finds nothing wrong with it.
        before: The state that it continues from.
        dataset_digest: Digest of the dataset that it names.

    Raises:
        InvalidRequest: It cannot: the state, the dataset or a field that cannot change is another one.
    """
    continued = _config_of(before)
    if before.dataset_digest != dataset_digest:
        text = (
            f"is another dataset than that of the training to continue, whose digest is {before.dataset_digest}: name "
            "that one, or begin a new training on this one with checkpoint_uri"
        )
        raise InvalidRequest([("dataset_uri", text)])
    # Only the number of steps depends on the tokens, and that can change.
    asked = resolve_training_config(request, continued.context_length, 0, continued)
    given = {field.name for field, _ in request.config.ListFields()}
    found: Problems = []
    for name in _FIXED:
        [*fields] = given & {name, ALTERNATIVE_FIELDS.get(name, name)}
        value = getattr(continued, name)
        if fields and getattr(asked, name) != value:
            text = f"is {'absent' if value is None else repr(value)} in the training to continue and cannot change"
            advice = "leave it out, or begin a new training with checkpoint_uri"
            found.append((f"config.{fields[0]}", f"{text}: {advice}"))
    if found := found or optimizer_problems(request.config, continued.optimizer):
        raise InvalidRequest(found)


def new_architecture(layers: LayerSizes, dataset: DatasetDescription, variant: Variant | None = None) -> Architecture:
    """Architecture of a model with the vocabulary of a dataset."""
    return Architecture(
        layers=layers,
        vocabulary_size=dataset.vocabulary_size,
        end_token_id=dataset.end_token_id,
        variant=variant or Variant(),
    )


def _config_of(before: TrainingState) -> ResolvedTrainingConfig:
    if not isinstance(before.config, dict) or not before.step:
        raise InvalidRequest([("continue_uri", NOTHING_TO_CONTINUE)])
    try:
        return ResolvedTrainingConfig.from_json(before.config)
    except (KeyError, TypeError, ValueError) as error:
        text = f"holds no options of a training ({error}): name another checkpoint"
        raise InvalidRequest([("continue_uri", text)]) from error


def _architecture_of(artifacts: ArtifactStore, request: pb.TrainModelRequest) -> Architecture:
    field = str(request.WhichOneof("start"))
    return Architecture.from_json(json.loads(_read(artifacts, field, getattr(request, field), CHECKPOINT, CONFIG)))


def _read_state(artifacts: ArtifactStore, uri: str) -> dict[str, Any]:
    """The state after a training's last step."""
    _, manifest = artifacts.read_manifest("continue_uri", uri, CHECKPOINT)
    last = f"{LAST}/{STATE}"
    name = last if any(entry.path == last for entry in manifest.files) else STATE
    content: dict[str, Any] = json.loads(_read(artifacts, "continue_uri", uri, CHECKPOINT, name))
    return content


def _read_dataset(artifacts: ArtifactStore, uri: str) -> DatasetDescription:
    return parse_file(DatasetDescription, _read(artifacts, "dataset_uri", uri, DATASET, DatasetDescription.FILE), uri)


def _read(artifacts: ArtifactStore, field: str, uri: str, kind: str, name: str) -> bytes:
    """A file of an artifact."""
    uri, _ = artifacts.read_manifest(field, uri, kind)
    filesystem, root = filesystem_of(uri)
    content: bytes = filesystem.cat_file(f"{root}/{name}")
    return content
