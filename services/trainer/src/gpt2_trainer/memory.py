"""What a training needs of its device's memory, estimated beforehand, and what would fit where it is too much.

With P weights (the vocabulary padded), T of them trained, tokens n = micro-batch x context length, width D, width I
inside each MLP (4 D in GPT-2), heads H, context length Q, L layers, padded vocabulary V, and b bytes in a number of the
chosen precision:

    weights      4 P, and 4 more for each adapted one with LoRA (the sums)
    gradients    4 T, twice that with accumulation (the running sum); with LoRA 4 for each adapted weight
    optimizer    8 T adamw and adam, 4 T sgd with momentum, rows + columns of each matrix adafactor
    activations  n L (b (8 D + 2 I) + 8 D + 4 I + (4 + 2 b) H Q), and with dropout of the residual 2 D, of attention
                 (b + 1) H Q in the sum; of one layer, and n L b D for the others, with memory saving
    logits       p V (8 + b) of the p tokens in a part of the loss (`model/loss.py`), and 4 V D for its sum over parts
    copies       4 P + optimizer where host and device are one: what a checkpoint is written from
    overhead     what the framework takes before anything is trained

On several devices, where their number is given, a micro-batch is divided by the copies of the model, and weights,
gradients and optimizer by the devices that share one.

The measured peak of small trainings on CPUs was 1.0 to 1.3 of it, on both backends; `test_memory.py` measures one.
"""

import math
import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.configuration.lora import LoraOptions
from gpt2_trainer.configuration.loss_parts import count_parts
from gpt2_trainer.configuration.training import Problems, TrainingOptions
from gpt2_trainer.model.adapters import adapted_weights
from gpt2_trainer.model.weights import has_vocabulary, is_layer_weight, weight_shapes

_OVERHEAD = {"cpu": 1200 << 20, "gpu": 600 << 20}
_FLOAT = 4
_GIB = 1 << 30
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_SMI_SECONDS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceMemory:
    """Memory of the device that a training runs on."""

    size: int
    """In bytes."""
    is_host: bool
    """Whether it is the memory that processes on CPUs share."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Bytes that a training needs, by what they are for; see the module for the formulas."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    copies: int
    overhead: int

    @property
    def total(self) -> int:
        """The greatest need at one time: gradients and activations are gone when a checkpoint is written."""
        step = self.gradients + self.activations + self.logits
        return self.weights + self.optimizer + max(step, self.copies) + self.overhead

    def __str__(self) -> str:
        names = ("weights", "gradients", "optimizer", "activations", "logits")
        return ", ".join(f"{name} {_size(getattr(self, name))}" for name in names)


def estimate_memory(architecture: Architecture, options: TrainingOptions, *, on_host: bool) -> MemoryEstimate:
    """Estimates what a training needs.

    Args:
        architecture: Sizes of the model.
        options: How it is trained.
        on_host: Whether it runs on CPUs, whose memory also holds what checkpoints are written from.
    """
    shapes = weight_shapes(architecture)
    for name in filter(has_vocabulary, shapes):
        shapes[name] = (architecture.padded_vocabulary_size, architecture.layers.n_embd)
    weights = _FLOAT * _count(list(shapes.values()))
    trained, adapted = _trained_shapes(architecture, options, shapes)
    parts = 2 if options.accumulate_gradients > 1 else 1
    optimizer = _optimizer_bytes(options, trained)
    copies = 1 if on_host else max(1, options.devices // options.model_devices)
    activations, logits = (size // copies for size in _activation_bytes(architecture, options))
    shared = 1 if on_host else options.model_devices
    return MemoryEstimate(
        weights=(weights + adapted) // shared,
        gradients=(parts * _FLOAT * _count(trained) + adapted) // shared,
        optimizer=optimizer // shared,
        activations=activations,
        logits=logits,
        copies=weights + optimizer if on_host else 0,
        overhead=_OVERHEAD["cpu" if on_host else "gpu"],
    )


def memory_problems(architecture: Architecture, options: TrainingOptions, memory: DeviceMemory) -> Problems:
    """Whether a training fits the device's memory and, where not, what would."""
    estimate = estimate_memory(architecture, options, on_host=memory.is_host)
    if estimate.total <= memory.size:
        return []
    fitting = _fitting(architecture, options, memory)
    advice = f"what would fit: {'; or '.join(fitting)}" if fitting else "no setting fits: choose a smaller model"
    return [
        (
            "config",
            f"the training needs about {_size(estimate.total)} ({estimate}), and the device has {_size(memory.size)}; "
            f"{advice} (where that is wrong, set GPT2_DEVICE_MEMORY_BYTES)",
        )
    ]


def device_memory(setting: int) -> DeviceMemory:
    """Memory of the machine's GPU, or else what this process may use of the machine's.

    Args:
        setting: Bytes that a person has set; 0: none.
    """
    gpu = _gpu_bytes()
    if gpu:
        return DeviceMemory(size=setting or gpu, is_host=False)
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in _CGROUP_LIMITS:
        text = Path(name).read_text(encoding="ascii").strip() if Path(name).exists() else ""
        if text.isdecimal():
            sizes.append(int(text))
    return DeviceMemory(size=setting or min(sizes), is_host=True)


def _gpu_bytes() -> int:
    """Memory of the smallest GPU; 0 where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    arguments = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(arguments, capture_output=True, text=True, timeout=_SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    sizes = [int(line) << 20 for line in answer.stdout.split() if line.isdecimal()]
    return min(sizes, default=0)


def _trained_shapes(
    architecture: Architecture, options: TrainingOptions, shapes: dict[str, tuple[int, ...]]
) -> tuple[list[tuple[int, ...]], int]:
    """Shapes of what is trained, and bytes of the sums that take adapted weights' place."""
    if options.lora is None:
        chosen = [
            shape
            for name, shape in shapes.items()
            if is_layer_weight(name) or not options.only_train_transformer_layers
        ]
        return chosen, 0
    adapted = [shapes[name] for name in adapted_weights(architecture, options.lora)]
    rank = options.lora.rank
    return [shape for rows, columns in adapted for shape in ((rows, rank), (rank, columns))], _FLOAT * _count(adapted)


def _optimizer_bytes(options: TrainingOptions, trained: list[tuple[int, ...]]) -> int:
    if options.optimizer == "adafactor":
        return _FLOAT * sum(sum(shape) for shape in trained)
    slots = {"adamw": 2, "adam": 2, "sgd": 1 if options.momentum else 0}[options.optimizer]
    return slots * _FLOAT * _count(trained)


def _activation_bytes(architecture: Architecture, options: TrainingOptions) -> tuple[int, int]:
    """Bytes of what the backward pass needs of the layers, and of the last projection."""
    sizes = architecture.layers
    tokens = options.micro_batch_size * options.context_length
    number = 2 if options.precision == "bfloat16" else 4
    attention = (4 + 2 * number) * sizes.n_head * options.context_length
    dropout = 2 * sizes.n_embd if options.residual_dropout else 0
    if options.attention_dropout:
        dropout += (number + 1) * sizes.n_head * options.context_length
    width, inner = sizes.n_embd, sizes.inner_size
    layer = tokens * (number * (8 * width + 2 * inner) + 8 * width + 4 * inner + attention + dropout)
    kept = layer + sizes.n_layer * tokens * number * sizes.n_embd
    activations = kept if options.memory_saving_gradients else sizes.n_layer * layer
    vocabulary = architecture.padded_vocabulary_size
    parts = count_parts(tokens, vocabulary)
    sums = _FLOAT * vocabulary * sizes.n_embd if parts > 1 else 0
    return activations, tokens // parts * vocabulary * (8 + number) + sums


def _fitting(architecture: Architecture, options: TrainingOptions, memory: DeviceMemory) -> list[str]:
    """Changes that make a training fit: each alone where that is enough, else all that save more and more."""

    def fits(changed: TrainingOptions) -> bool:
        return estimate_memory(architecture, changed, on_host=memory.is_host).total <= memory.size

    found = []
    for size in range(options.micro_batch_size - 1, 0, -1):
        if options.batch_size % size == 0 and fits(_in_parts(options, size)):
            found.append(f"micro_batch_size {size}")
            break
    changes = _changes(options)
    found += [text for text, changed in changes.items() if fits(replace(options, **changed))]
    if found:
        return found
    together, texts = _in_parts(options, 1), ["micro_batch_size 1"]
    for text, changed in changes.items():
        together = replace(together, **changed)
        texts.append(text)
        if fits(together):
            return [" with ".join((texts[0], " and ".join(texts[1:])))]
    return []


def _changes(options: TrainingOptions) -> dict[str, dict[str, Any]]:
    changes: dict[str, dict[str, Any]] = {}
    if not options.memory_saving_gradients:
        changes["memory_saving_gradients"] = {"memory_saving_gradients": True}
    if options.precision == "float32":
        changes["precision bfloat16"] = {"precision": "bfloat16"}
    if options.optimizer in ("adamw", "adam"):
        changes["optimizer adafactor"] = {"optimizer": "adafactor"}
    if options.lora is None:
        changes["lora"] = {"lora": LoraOptions(), "only_train_transformer_layers": False}
    return changes


def _in_parts(options: TrainingOptions, size: int) -> TrainingOptions:
    return replace(options, accumulate_gradients=options.batch_size // size)


def _count(shapes: list[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def _size(count: float) -> str:
    return f"{count / _GIB:.2f} GiB"
