"""Sharding of weights and batches over several devices, of one node or of several, by Keras' distribution API.

A mesh of two axes: `batch` shards the sequences of a batch (data parallel), `model` the weights, slots and arithmetic
of one copy of the model (tensor parallel, as in Megatron-LM, Shoeybi et al. 2019). XLA adds the collectives.
"""

import logging
from typing import Any

import jax
import numpy as np
from keras.distribution import DeviceMesh, LayoutMap, TensorLayout, distribute_tensor
from numpy.typing import NDArray

from gpt2_common.errors import InvalidRequest
from gpt2_trainer.configuration.training import ResolvedTrainingConfig

_log = logging.getLogger(__name__)
_BY_COLUMNS, _BY_ROWS = (None, "model"), ("model", None)
_LAYOUTS = {
    r"h\.\d+\.(attn\.c_attn|mlp\.c_fc)\.weight": _BY_COLUMNS,
    r"h\.\d+\.(attn\.c_attn|mlp\.c_fc)\.bias": ("model",),
    r"h\.\d+\.(attn|mlp)\.c_proj\.weight": _BY_ROWS,
    r"(wte|lm_head)\.weight": _BY_ROWS,
}


class Distribution:
    """A mesh of devices and the sharding of each tensor on it.

    Args:
        devices: Names of the devices, in order, those of one node after those of another.
        model_devices: Devices that share one copy of the model; divides their number.
    """

    def __init__(self, devices: list[str], model_devices: int) -> None:
        self._model_devices = model_devices
        self.spans_nodes = jax.process_count() > 1
        self._mesh = DeviceMesh((len(devices) // model_devices, model_devices), ("batch", "model"), devices)
        self._layouts = LayoutMap(self._mesh)
        for pattern, axes in _LAYOUTS.items():
            self._layouts[pattern] = TensorLayout(axes)

    def layout(self, name: str, shape: tuple[int, ...]) -> TensorLayout:
        """Sharding of a weight, or of a slot `<slot>/<weight>`; replicated where its size is not divisible."""
        layout = self._layouts[name.rpartition("/")[2]]
        axes = layout.axes if layout is not None and not name.startswith("lora_") else ()
        divides = all(axis is None or size % self._model_devices == 0 for axis, size in zip(axes, shape, strict=False))
        return self._layout(axes if len(axes) == len(shape) and divides else (None,) * len(shape))

    def place(self, name: str, value: Any) -> Any:
        """Shards a weight or slot over its devices. Each node has the whole value, and takes its part of it."""
        layout = self.layout(name, tuple(value.shape))
        if self.spans_nodes:
            return _assembled(np.asarray(value), layout)
        return distribute_tensor(value, layout)

    def shard_batch(self, batch: Any) -> Any:
        """Shards a batch [sequences, ...] by sequences; inside and outside of compiled functions."""
        layout = self._layout(("batch", *(None,) * (len(batch.shape) - 1)))
        if self.spans_nodes and isinstance(batch, np.ndarray):
            return _assembled(batch, layout)
        return distribute_tensor(batch, layout)

    def local_rows(self, batch_size: int, parts: int) -> NDArray[np.int64]:
        """The sequences of a batch that this node's devices compute: their part of each micro-batch, in order."""
        size = batch_size // parts
        mine = self._local_range(size)
        return np.concatenate([np.arange(mine.start, mine.stop) + part * size for part in range(parts)])

    def assemble_batch(self, rows: NDArray[np.int32], batch_size: int, parts: int) -> Any:
        """Makes one batch of the `local_rows` of all nodes.

        Returns:
            int32 [batch_size, time], or of several micro-batches [parts, batch_size / parts, time].
        """
        size, mine = batch_size // parts, self._local_range(batch_size // parts)
        micro_batches = (parts,) if parts > 1 else ()
        local = rows.reshape(*micro_batches, len(mine), -1)
        axes = (*(None for _ in micro_batches), "batch", None)

        def piece(index: tuple[slice, ...]) -> NDArray[np.int32]:
            first, last, _ = index[-2].indices(size)
            return local[..., first - mine.start : last - mine.start, :]

        shape = (*micro_batches, size, local.shape[-1])
        return jax.make_array_from_callback(shape, self._layout(axes).backend_layout, piece)

    def _local_range(self, size: int) -> range:
        """The sequences of a micro-batch that this node's devices compute."""
        indices = self._layout(("batch",)).backend_layout.addressable_devices_indices_map((size,)).values()
        bounds = [index[0].indices(size) for index in indices]
        return range(min(first for first, _, _ in bounds), max(last for _, last, _ in bounds))

    def replicated(self) -> Any:
        """JAX's sharding of a replicated value."""
        return self._layout(()).backend_layout

    def _layout(self, axes: tuple[str | None, ...]) -> TensorLayout:
        return TensorLayout(axes, self._mesh)


def choose_distribution(config: ResolvedTrainingConfig) -> Distribution | None:
    """The devices of a training, as many of each node; None: a single one.

    Raises:
        InvalidRequest: There are fewer devices than the configuration asks for, or the sequences do not divide over
            the nodes.
    """
    nodes: list[list[str]] = [[] for _ in range(jax.process_count())]
    for device in jax.devices():
        nodes[device.process_index].append(f"{device.platform}:{device.id}")
    available = min(len(devices) for devices in nodes)
    found = config.devices or _max_devices(available, len(nodes), config)
    if problem := _problem(found, available, len(nodes), config):
        raise InvalidRequest([problem])
    total = found * len(nodes)
    if total == 1:
        return None
    shown = (found, available, len(nodes), config.model_devices)
    _log.info("training on %d of %d devices of each of %d nodes, %d to a copy of the model", *shown)
    return Distribution([name for devices in nodes for name in devices[:found]], config.model_devices)


def _max_devices(available: int, nodes: int, config: ResolvedTrainingConfig) -> int:
    """The most devices of each node whose copies of the model divide the sequences evenly; 0: none do."""
    numbers = range(available, 0, -1)
    return next((number for number in numbers if _divides(number * nodes, config)), 0)


def _divides(devices: int, config: ResolvedTrainingConfig) -> bool:
    copies, left = divmod(devices, config.model_devices)
    return not left and copies > 0 and config.micro_batch_size % copies == 0


def _problem(found: int, available: int, nodes: int, config: ResolvedTrainingConfig) -> tuple[str, str] | None:
    """What keeps a training from so many devices of each node: a field and its problem."""
    text = "{} devices are asked for, and there are {}"
    if found > available:
        return "config.devices", text.format(found, available) + (" on a node" if nodes > 1 else "")
    if config.model_devices > (found or available) * nodes:
        return "config.model_devices", text.format(config.model_devices, (found or available) * nodes)
    if not _divides(found * nodes, config):
        field = "config.num_nodes" if nodes > 1 else "config.devices"
        advice = f"choose a number that divides the {config.micro_batch_size} sequences of a micro-batch"
        return field, f"the copies of the model on {nodes} nodes do not divide a micro-batch evenly; {advice}"
    return None


def _assembled(value: NDArray[Any], layout: TensorLayout) -> Any:
    """An array over devices of several nodes, of which each has the whole value."""
    # Copied, as steps donate the buffers of their arguments.
    return jax.make_array_from_callback(value.shape, layout.backend_layout, lambda index: np.array(value[index]))
