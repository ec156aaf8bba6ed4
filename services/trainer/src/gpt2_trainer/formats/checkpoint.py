"""A checkpoint's files: architecture, weights, optimizer, state of the training, tokenizer.

config.json             the architecture
weights.safetensors     float32, named as in `model/weights.py`, the vocabulary exact
optimizer.safetensors   slots by `<slot>/<weight>`; missing where there is no optimizer
state.json              how far the training is, with what options, on which data
adapter/                LoRA adapters in PEFT's format; missing where there are none
last/                   the last step of a training, to continue from; missing where the other files are that step
tokenizer/              the tokenizer's files; missing where its source had none
"""

import math
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from gpt2_common.errors import DataLoss
from gpt2_contracts.tokenizer import TOKENIZER_FOLDER
from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.configuration.earlier_names import STATE_NAMES
from gpt2_trainer.configuration.training import LoraConfig
from gpt2_trainer.formats.json_files import read_json, write_json
from gpt2_trainer.formats.peft import read_adapters, write_adapters
from gpt2_trainer.model.lora import merge_adapters
from gpt2_trainer.model.weights import Weights, averaged, check_weights, cut_vocabulary

CONFIG, WEIGHTS, OPTIMIZER, STATE, ADAPTER, LAST = (
    "config.json",
    "weights.safetensors",
    "optimizer.safetensors",
    "state.json",
    "adapter",
    "last",
)

# `transformers` refuses files without it.
SAFETENSORS_METADATA = {"format": "pt"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """The validation loss, in nats per token, after a number of steps."""

    step: int
    loss: float
    bits_per_byte: float | None = None
    """None where the dataset carries no tokenizer, and in checkpoints from before it was measured."""


def _lowest(validations: list[Validation]) -> Validation | None:
    finite = [item for item in validations if math.isfinite(item.loss)]
    return min(finite, key=lambda validation: validation.loss, default=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingState:
    """Progress of a training: what `state.json` holds."""

    step: int = 0
    """Updates made."""
    seed: int = 0
    config: dict[str, Any] | None = None
    """ResolvedTrainingConfig; None for imported weights."""
    dataset_digest: str = ""
    tokenizer_digest: str = ""
    source: str = ""
    """Where the first weights are from: `new`, or a checkpoint's digest, or the address of an import."""
    validations: list[Validation] = field(default_factory=list)
    """All so far, in order."""
    unreported_losses: list[float] = field(default_factory=list)
    """Losses since the last report, which go into the next."""
    skipped_steps: int = 0
    """Skipped updates so far."""
    consecutive_skipped_steps: int = 0
    """Skipped updates since the last one that was applied."""
    seconds: float = 0.0
    """Seconds that the training took, where they are limited."""
    adapters_merged: bool = False
    """Whether the weights have the adapters added, as in published checkpoints, and not in a training's own."""
    step_complete: bool = True
    """False: the training was suspended between its latest update and what follows it, such as a validation."""
    stopped_because: str = ""
    """What ended the training: `steps`, `max_seconds` or `early_stopping`; empty: it has not ended."""

    @property
    def best(self) -> Validation | None:
        """The lowest validation, that before the first update among them; the earliest of equals."""
        return _lowest(self.validations)

    @property
    def best_trained(self) -> Validation | None:
        """The lowest validation after the first update; the earliest of equals."""
        return _lowest([item for item in self.validations if item.step > 0])

    def to_json(self) -> dict[str, Any]:
        """The content of `state.json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "TrainingState":
        """Reads what `to_json` made. Raises TypeError or KeyError when it is not that."""
        content = {STATE_NAMES.get(name, name): value for name, value in content.items()}
        return cls(**{**content, "validations": [Validation(**item) for item in content["validations"]]})


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint in memory; the vocabulary is exact."""

    architecture: Architecture
    weights: Weights
    slots: Weights
    state: TrainingState
    adapters: Weights = field(default_factory=dict)
    """LoRA adapters."""


def write_checkpoint(folder: Path, checkpoint: Checkpoint, tokenizer: Path | None) -> None:
    """Writes a checkpoint's files.

    Args:
        folder: An empty folder.
        checkpoint: What to write; padding of the vocabulary is removed.
        tokenizer: Folder with the tokenizer's files.
    """
    architecture = checkpoint.architecture
    write_json(folder / CONFIG, architecture.to_json())
    save_file(cut_vocabulary(checkpoint.weights, architecture), folder / WEIGHTS, SAFETENSORS_METADATA)
    if checkpoint.slots:
        save_file(cut_vocabulary(checkpoint.slots, architecture), folder / OPTIMIZER)
    write_json(folder / STATE, checkpoint.state.to_json())
    if checkpoint.adapters:
        write_adapters(folder / ADAPTER, checkpoint.adapters, _lora_of(checkpoint.state))
    if tokenizer is not None:
        shutil.copytree(tokenizer, folder / TOKENIZER_FOLDER)


def read_checkpoint(folder: Path, *, with_optimizer: bool) -> Checkpoint:
    """Reads a checkpoint's files.

    Args:
        folder: The checkpoint's folder.
        with_optimizer: Read the optimizer's slots too.

    Raises:
        DataLoss: The files are not those of a checkpoint; the message names what is wrong.
    """
    try:
        architecture = Architecture.from_json(read_json(folder / CONFIG))
        state = TrainingState.from_json(read_json(folder / STATE))
        weights = _read_tensors(folder / WEIGHTS)
        check_weights(weights, architecture)
        has_slots = with_optimizer and (folder / OPTIMIZER).exists()
        slots = _read_tensors(folder / OPTIMIZER) if has_slots else {}
        adapters = read_adapters(folder / ADAPTER) if (folder / ADAPTER).exists() else {}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataLoss(f"the checkpoint in {folder} is damaged ({error}): use another one") from error
    return Checkpoint(architecture=architecture, weights=weights, slots=slots, state=state, adapters=adapters)


def with_averages(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with averages in place of weights, where its training keeps them; without the optimizer."""
    weights, adapters = (averaged(tensors, checkpoint.slots) for tensors in (checkpoint.weights, checkpoint.adapters))
    return replace(checkpoint, weights=weights, adapters=adapters, slots={})


def merged(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its adapters merged into the weights, so that readers need not know of them."""
    if not checkpoint.adapters or checkpoint.state.adapters_merged:
        return checkpoint
    weights = merge_adapters(checkpoint.weights, checkpoint.adapters, _lora_of(checkpoint.state))
    return replace(checkpoint, weights=weights, state=replace(checkpoint.state, adapters_merged=True))


def _read_tensors(path: Path) -> Weights:
    try:
        tensors: Weights = load_file(path)
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    return tensors


def _lora_of(state: TrainingState) -> LoraConfig:
    try:
        return LoraConfig.from_json((state.config or {})["lora"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataLoss(f"the options in {STATE} of the checkpoint are damaged ({error}): use another one") from error
