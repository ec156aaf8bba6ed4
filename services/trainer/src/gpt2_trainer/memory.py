"""Estimates the device memory of a training, and finds what would fit where it is too much.

With P weights (the vocabulary padded), T of them trained, tokens n = micro-batch x context length, width D, width I
inside each MLP (4 D in GPT-2), heads H, context length Q, L layers, padded vocabulary V, and b bytes in a number of the
compute dtype:

    weights      4 P, and 4 more for each adapted one with LoRA (the sums)
    gradients    4 T, twice that with accumulation (the running sum); with LoRA 4 for each adapted weight
    optimizer    8 T adamw and adam, 4 T sgd with momentum, rows + columns of each matrix adafactor; muon 4 T and the
                 columns of hidden matrices, 8 T of other weights
    activations  n L (b (8 D + 2 I) + 8 D + 4 I + (4 + 2 b) H Q), and with dropout of the residual 2 D, of attention
                 (b + 1) H Q in the sum; with gradient checkpointing of one layer, and n L b D for the others
    logits       p V (8 + b) of the p tokens in a chunk of the loss (`kernels/cross_entropy.py`), and 4 V D for its sum
    averages     4 T with ema_decay, in the optimizer's sum
    copies       4 P + optimizer where host and device are one: what a checkpoint is written from
    overhead     of the framework

On several devices, where their number is given, and on several nodes, a micro-batch is divided by the copies of the
model, and weights, gradients and optimizer by the devices that share one.

The measured peak of small trainings on CPUs was 1.0 to 1.3 of it, on both backends; `test_memory.py` measures one.
"""

import math
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.configuration.training import LoraConfig, Problems, ResolvedTrainingConfig, count_chunks
from gpt2_trainer.model.lora import adapted_weights, adapter_names, is_hidden_matrix
from gpt2_trainer.model.weights import has_vocabulary, is_layer_weight, weight_shapes

_OVERHEAD = {"cpu": 1200 << 20, "gpu": 600 << 20}
_FLOAT = 4
_GIB = 1 << 30
_NONE_FITS = "no setting fits: choose a smaller model, or give the trainer more memory"
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_SMI_SECONDS = 10

_TUNABLES = {"mmap_max": 0, "trim_threshold": 1 << 40, "arena_max": 1, "hugetlb": 1}
MALLOC_ENVIRONMENT = {"GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in _TUNABLES.items())}
"""Environment of a training process on CPUs: glibc keeps the memory that one step frees for the next step.

By default glibc maps each large tensor from the kernel and unmaps it: at 124M with batches of 4 x 256, 1.6 GB and 0.4
million page faults per step. One heap that is never trimmed, in huge pages, gives about 10 % more tokens per second on
two cores. glibc reads the variable at start; other C libraries ignore it. A value that the service's environment has
is kept.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceMemory:
    """Memory of the device that a training runs on."""

    size: int
    """In bytes."""
    is_host: bool
    """Whether it is the host's memory, shared by processes on CPUs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Bytes of a training by purpose; formulas in the module's docstring."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    copies: int
    overhead: int

    @property
    def total(self) -> int:
        """The peak: gradients and activations are freed before a checkpoint is written."""
        step = self.gradients + self.activations + self.logits
        return self.weights + self.optimizer + max(step, self.copies) + self.overhead

    def __str__(self) -> str:
        names = ("weights", "gradients", "optimizer", "activations", "logits")
        return ", ".join(f"{name} {_size(getattr(self, name))}" for name in names)


def estimate_memory(architecture: Architecture, config: ResolvedTrainingConfig, *, on_host: bool) -> MemoryEstimate:
    """Estimates the memory of a training.

    Args:
        architecture: Sizes of the model.
        config: The training's configuration.
        on_host: Whether it runs on CPUs, whose memory also holds the copies that checkpoints are written from.
    """
    shapes = weight_shapes(architecture)
    for name in filter(has_vocabulary, shapes):
        shapes[name] = (architecture.padded_vocabulary_size, architecture.layers.n_embd)
    weights = _FLOAT * _count(shapes.values())
    trained, adapted = _trained_shapes(architecture, config, shapes)
    parts = 2 if config.gradient_accumulation_steps > 1 else 1
    averages = _FLOAT * _count(trained.values()) if config.ema_decay else 0
    optimizer = _optimizer_bytes(config, trained) + averages
    copies = config.num_nodes if on_host else max(1, (config.devices or 1) * config.num_nodes // config.model_devices)
    activations, logits = (size // copies for size in _activation_bytes(architecture, config))
    shared = 1 if on_host else config.model_devices
    return MemoryEstimate(
        weights=(weights + adapted) // shared,
        gradients=(parts * _FLOAT * _count(trained.values()) + adapted) // shared,
        optimizer=optimizer // shared,
        activations=activations,
        logits=logits,
        copies=weights + optimizer if on_host else 0,
        overhead=_OVERHEAD["cpu" if on_host else "gpu"],
    )


def memory_problems(architecture: Architecture, config: ResolvedTrainingConfig, memory: DeviceMemory) -> Problems:
    """Whether a training fits the device's memory and, where it does not, what would."""
    estimate = estimate_memory(architecture, config, on_host=memory.is_host)
    if estimate.total <= memory.size:
        return []
    fitting = _fitting(architecture, config, memory)
    advice = f"what would fit: {'; or '.join(fitting)}" if fitting else _NONE_FITS
    return [
        (
            "config",
            f"the training needs about {_size(estimate.total)} ({estimate}), and the device has {_size(memory.size)}; "
            f"{advice} (where that is wrong, set GPT2_DEVICE_MEMORY_BYTES)",
        )
    ]


def device_memory(setting: int) -> DeviceMemory:
    """Memory of the machine's GPU, or the part of the machine's memory that this process may use.

    Args:
        setting: Bytes by the setting; 0: ask the device.
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
    architecture: Architecture, config: ResolvedTrainingConfig, shapes: dict[str, tuple[int, ...]]
) -> tuple[dict[str, tuple[int, ...]], int]:
    """Shapes of trained weights by name, and bytes of the merged weights of LoRA."""
    if config.lora is None:
        whole = not config.only_train_transformer_layers
        return {name: shape for name, shape in shapes.items() if whole or is_layer_weight(name)}, 0
    adapted = {name: shapes[name] for name in adapted_weights(architecture, config.lora)}
    rank = config.lora.rank
    adapters: dict[str, tuple[int, ...]] = {}
    for name, (rows, columns) in adapted.items():
        a, b = adapter_names(name)
        adapters |= {a: (rows, rank), b: (rank, columns)}
    return adapters, _FLOAT * _count(adapted.values())


def _optimizer_bytes(config: ResolvedTrainingConfig, trained: dict[str, tuple[int, ...]]) -> int:
    if config.optimizer == "adafactor":
        return _FLOAT * sum(sum(shape) for shape in trained.values())
    if config.optimizer == "muon":
        hidden = {name: shape for name, shape in trained.items() if is_hidden_matrix(name)}
        elements = 2 * _count(trained.values()) - _count(hidden.values())
        return _FLOAT * (elements + sum(columns for _, columns in hidden.values()))
    slots = {"adamw": 2, "adam": 2, "sgd": 1 if config.momentum else 0}[config.optimizer]
    return slots * _FLOAT * _count(trained.values())


def _activation_bytes(architecture: Architecture, config: ResolvedTrainingConfig) -> tuple[int, int]:
    """Bytes kept for the backward pass: activations of the layers, and logits."""
    sizes = architecture.layers
    tokens = config.micro_batch_size * config.context_length
    number = 2 if config.precision == "bfloat16" else 4
    attention = (4 + 2 * number) * sizes.n_head * config.context_length
    dropout = 2 * sizes.n_embd if config.residual_dropout else 0
    if config.attention_dropout:
        dropout += (number + 1) * sizes.n_head * config.context_length
    width, inner = sizes.n_embd, sizes.inner_size
    layer = tokens * (number * (8 * width + 2 * inner) + 8 * width + 4 * inner + attention + dropout)
    kept = layer + sizes.n_layer * tokens * number * sizes.n_embd
    activations = kept if config.gradient_checkpointing else sizes.n_layer * layer
    vocabulary = architecture.padded_vocabulary_size
    parts = count_chunks(tokens, vocabulary)
    sums = _FLOAT * vocabulary * sizes.n_embd if parts > 1 else 0
    return activations, tokens // parts * vocabulary * (8 + number) + sums


def _fitting(architecture: Architecture, config: ResolvedTrainingConfig, memory: DeviceMemory) -> list[str]:
    """Changes that make a training fit: each alone where one is enough, else several together."""

    def fits(changed: ResolvedTrainingConfig) -> bool:
        return estimate_memory(architecture, changed, on_host=memory.is_host).total <= memory.size

    found = []
    for size in range(config.micro_batch_size - 1, 0, -1):
        if config.batch_size % size == 0 and fits(_in_parts(config, size)):
            found.append(f"micro_batch_size {size}")
            break
    changes = _changes(config)
    found += [text for text, changed in changes.items() if fits(replace(config, **changed))]
    if found:
        return found
    together, texts = _in_parts(config, 1), ["micro_batch_size 1"]
    for text, changed in changes.items():
        together = replace(together, **changed)
        texts.append(text)
        if fits(together):
            return [" with ".join((texts[0], " and ".join(texts[1:])))]
    return []


def _changes(config: ResolvedTrainingConfig) -> dict[str, dict[str, Any]]:
    changes: dict[str, dict[str, Any]] = {}
    if not config.gradient_checkpointing:
        changes["gradient_checkpointing"] = {"gradient_checkpointing": True}
    if config.precision == "float32":
        changes["precision bfloat16"] = {"precision": "bfloat16"}
    if config.optimizer in ("adamw", "adam"):
        changes["optimizer adafactor"] = {"optimizer": "adafactor"}
    if config.lora is None:
        changes["lora"] = {"lora": LoraConfig(), "only_train_transformer_layers": False}
    return changes


def _in_parts(config: ResolvedTrainingConfig, size: int) -> ResolvedTrainingConfig:
    return replace(config, gradient_accumulation_steps=config.batch_size // size)


def _count(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def _size(count: float) -> str:
    return f"{count / _GIB:.2f} GiB"
