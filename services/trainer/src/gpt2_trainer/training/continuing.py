"""Continuing a finished training: its last step in a checkpoint artifact, and the options that must or may change.

A checkpoint artifact holds the best step. Where that is not the last one, or low-rank additions are merged into its
weights, the state to continue from lies in its folder `last`.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.errors import InvalidRequest
from gpt2_trainer.configuration.training import Problems, TrainingOptions
from gpt2_trainer.formats.checkpoint import Checkpoint, TrainingState, read_checkpoint
from gpt2_trainer.training_requests import optimizer_problems, training_options

LAST = "last"
_FIXED = (
    "seed",
    "batch_size",
    "context_length",
    "optimizer",
    "momentum",
    "only_train_transformer_layers",
    "lora",
    "validation_sequences",
)
"""Options that the data's order, the optimizer's state or the comparison of losses rests on."""
_ANEW = ("steps", "first_step", "warmup_steps", "early_stopping_patience", "early_stopping_min_delta", "max_seconds")
"""Options of one training alone, which the next does not take over."""
_OTHER_FORMS = {
    "batch_size": "batch_tokens",
    "accumulate_gradients": "micro_batch_size",
    "attention_dropout": "dropout",
    "residual_dropout": "dropout",
    "embedding_dropout": "dropout",
}
"""Fields by which a request says what an option is to be, besides the one of its name."""


def last_folder(folder: Path) -> Path:
    """Where a checkpoint artifact's folder holds the state after the training's last step."""
    return folder / LAST if (folder / LAST).is_dir() else folder


def read_last(folder: Path) -> Checkpoint:
    """Reads the state after the last step of a checkpoint artifact.

    Raises:
        DataLoss: The files are damaged.
        InvalidRequest: It holds no optimizer's state.
    """
    checkpoint = read_checkpoint(last_folder(folder), with_optimizer=True)
    if not checkpoint.slots:
        raise InvalidRequest([("continue_uri", _NOTHING_TO_CONTINUE)])
    return checkpoint


def continuing_problems(request: pb.TrainModelRequest, before: TrainingState, dataset_digest: str) -> Problems:
    """What is wrong with continuing a training.

    Args:
        request: The request; nothing is wrong with it by itself.
        before: The state that it continues from.
        dataset_digest: Digest of the dataset that it names.
    """
    if before.config is None or not before.step:
        return [("continue_uri", _NOTHING_TO_CONTINUE)]
    if before.dataset_digest != dataset_digest:
        text = (
            f"is another dataset than that of the training to continue, whose digest is {before.dataset_digest}: name "
            "that one, or begin a new training on this one with checkpoint_uri"
        )
        return [("dataset_uri", text)]
    earlier = TrainingOptions.from_json(before.config)
    asked = _asked(request, earlier, None)
    found: Problems = []
    for name in _FIXED:
        if _is_given(request.config, name) and getattr(asked, name) != getattr(earlier, name):
            value = "absent" if getattr(earlier, name) is None else repr(getattr(earlier, name))
            field = _OTHER_FORMS[name] if name in _OTHER_FORMS and not getattr(request.config, name) else name
            text = f"is {value} in the training to continue and cannot change: leave it out, or begin a new training"
            found.append((f"config.{field}", f"{text} with checkpoint_uri"))
    return found or optimizer_problems(request.config, earlier.optimizer)


def complete_request(request: pb.TrainModelRequest, before: TrainingState) -> pb.TrainModelRequest:
    """The request with the sizes of a batch filled in from the training that it continues."""
    completed = pb.TrainModelRequest()
    completed.CopyFrom(request)
    config, earlier = completed.config, _earlier(before)
    config.context_length = config.context_length or earlier.context_length
    config.optimizer = config.optimizer or earlier.optimizer
    if not config.batch_size and not config.batch_tokens:
        config.batch_size = earlier.batch_size
    return completed


def continued_options(
    request: pb.TrainModelRequest, before: TrainingState, train_tokens: int | None
) -> TrainingOptions:
    """Options of a training that continues another: what the request leaves out is as it was there.

    Args:
        request: The request.
        before: The state that it continues from.
        train_tokens: Tokens of the train split.
    """
    earlier = _earlier(before)
    asked = _asked(request, earlier, train_tokens)
    kept: Mapping[str, Any] = {
        item.name: getattr(earlier, item.name)
        for item in fields(earlier)
        if item.name not in _ANEW and not _is_given(request.config, item.name)
    }
    # The optimizer's state is warm: the rate need not rise again unless that is asked for.
    warmup_steps = max(0, request.config.warmup_steps)
    return replace(asked, **kept, steps=before.step + asked.steps, first_step=before.step, warmup_steps=warmup_steps)


_NOTHING_TO_CONTINUE = (
    "is no checkpoint of a finished training with its optimizer's state: name it in checkpoint_uri, to begin a new "
    "training with its weights"
)


def _earlier(before: TrainingState) -> TrainingOptions:
    if before.config is None:
        raise InvalidRequest([("continue_uri", _NOTHING_TO_CONTINUE)])
    return TrainingOptions.from_json(before.config)


def _asked(request: pb.TrainModelRequest, earlier: TrainingOptions, train_tokens: int | None) -> TrainingOptions:
    """Options by the request alone, but for the sizes of a batch, which steps in epochs depend on."""
    state = TrainingState(config=earlier.to_json())
    return training_options(complete_request(request, state), earlier.context_length, train_tokens)


def _is_given(config: pb.TrainConfig, name: str) -> bool:
    """Whether a request says what an option is to be, in whichever form."""
    field = config.DESCRIPTOR.fields_by_name.get(name)
    if field is None:
        return False
    given = config.HasField(name) if field.has_presence else bool(getattr(config, name))  # type: ignore[arg-type]
    return given or (name in _OTHER_FORMS and bool(getattr(config, _OTHER_FORMS[name])))
