"""Looks at a training's inputs before its job is created, so that what cannot work is refused at once.

Only small files are read. What is not there yet, or cannot be read, is left for the job to find.
"""

import json
import logging
from typing import Any

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.artifacts import ArtifactStore
from gpt2_common.artifacts.roots import filesystem_of
from gpt2_common.errors import InvalidRequest, PipelineError
from gpt2_trainer.configuration.architecture import Architecture, LayerSizes, Variant
from gpt2_trainer.configuration.training import Problems
from gpt2_trainer.formats.checkpoint import STATE, TrainingState
from gpt2_trainer.memory import device_memory, memory_problems
from gpt2_trainer.training.continuing import LAST, complete_request, continued_options, continuing_problems
from gpt2_trainer.training.data import DatasetDescription, too_short
from gpt2_trainer.training_requests import layer_sizes, sized_problems, training_options

_log = logging.getLogger(__name__)


def admission_problems(request: pb.TrainModelRequest, artifacts: ArtifactStore, memory_bytes: int) -> Problems:
    """What is wrong with a training, as far as the sizes of its inputs tell.

    Args:
        request: The request; nothing is wrong with it by itself.
        artifacts: Where its inputs are.
        memory_bytes: Memory of the device, where a person has set it; 0: find out.
    """
    try:
        dataset = DatasetDescription.from_json(_read(artifacts, "dataset_uri", request.dataset_uri, "dataset"))
        start = layer_sizes(request) or _architecture_of(artifacts, request)
        before = None
        if request.WhichOneof("start") == "continue_uri":
            digest = artifacts.read_manifest("dataset_uri", request.dataset_uri, "dataset")[1].digest
            before = TrainingState.from_json(_read_state(artifacts, request.continue_uri))
            if problems := continuing_problems(request, before, digest):
                return problems
    except InvalidRequest as error:
        return list(error.violations)
    except (PipelineError, OSError, ValueError, KeyError, TypeError) as error:
        _log.info("the inputs of the training cannot be looked at yet: %s", error)
        return []
    return input_problems(request, start, dataset, memory_bytes, before)


def input_problems(
    request: pb.TrainModelRequest,
    start: LayerSizes | Architecture,
    dataset: DatasetDescription,
    memory_bytes: int,
    before: TrainingState | None = None,
) -> Problems:
    """What is wrong with a training, given the sizes of its inputs.

    Args:
        request: The request; nothing is wrong with it by itself, or with continuing `before`.
        start: Sizes of a new model, or the architecture of the one to begin with.
        dataset: The dataset.
        memory_bytes: As for `admission_problems`.
        before: The state of the training that it continues, if any.
    """
    layers = start if isinstance(start, LayerSizes) else start.layers
    if before is None:
        options = training_options(request, layers.n_ctx, dataset.train_tokens)
    else:
        options = continued_options(request, before, dataset.train_tokens)
        request = complete_request(request, before)
    splits = {"train": dataset.train_tokens, "validation": dataset.validation_tokens}
    found: Problems = []
    for split, tokens in splits.items():
        found = found or too_short(tokens, options.context_length, split)
    found = found or sized_problems(request, options, layers)
    if found:
        return found
    architecture = Architecture(
        layers=layers,
        vocabulary_size=dataset.vocabulary_size,
        end_token_id=dataset.end_token_id,
        variant=Variant() if isinstance(start, LayerSizes) else start.variant,
    )
    return memory_problems(architecture, options, device_memory(memory_bytes))


def _architecture_of(artifacts: ArtifactStore, request: pb.TrainModelRequest) -> Architecture:
    field = str(request.WhichOneof("start"))
    content = _read(artifacts, field, getattr(request, field), "checkpoint")
    return Architecture.from_json(content)


def _read_state(artifacts: ArtifactStore, uri: str) -> dict[str, Any]:
    """The state after a training's last step."""
    _, manifest = artifacts.read_manifest("continue_uri", uri, "checkpoint")
    last = f"{LAST}/{STATE}"
    name = last if any(entry.path == last for entry in manifest.files) else STATE
    return _read(artifacts, "continue_uri", uri, "checkpoint", name)


def _read(artifacts: ArtifactStore, field: str, uri: str, kind: str, name: str = "") -> dict[str, Any]:
    """A JSON file of an artifact; by default the description that an artifact of its kind holds."""
    uri, _ = artifacts.read_manifest(field, uri, kind)
    name = name or {"dataset": "dataset.json", "checkpoint": "config.json"}[kind]
    filesystem, root = filesystem_of(uri)
    content: dict[str, Any] = json.loads(filesystem.cat_file(f"{root}/{name}"))
    return content
