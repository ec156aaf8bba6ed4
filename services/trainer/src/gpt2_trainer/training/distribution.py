"""Sharding of weights and batches over several devices, by Keras' distribution API.

A mesh of two axes: `batch` shards the sequences of a batch (data parallel), `model` the weights, slots and arithmetic
of one copy of the model (tensor parallel, as in Megatron-LM, Shoeybi et al. 2019). XLA adds the collectives.
"""

import logging
from typing import Any

import keras
from keras.distribution import DeviceMesh, LayoutMap, TensorLayout, distribute_tensor

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
        devices: Names of the devices, in order.
        model_devices: Devices that share one copy of the model; divides their number.
    """

    def __init__(self, devices: list[str], model_devices: int) -> None:
        self._model_devices = model_devices
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
        """Shards a weight or slot over its devices."""
        return distribute_tensor(value, self.layout(name, tuple(value.shape)))

    def shard_batch(self, batch: Any) -> Any:
        """Shards a batch [sequences, ...] by sequences; inside and outside of compiled functions."""
        return distribute_tensor(batch, self._layout(("batch", *(None,) * (len(batch.shape) - 1))))

    def replicated(self) -> Any:
        """JAX's sharding of a replicated value."""
        return self._layout(()).backend_layout

    def _layout(self, axes: tuple[str | None, ...]) -> TensorLayout:
        return TensorLayout(axes, self._mesh)


def choose_distribution(config: ResolvedTrainingConfig) -> Distribution | None:
    """The devices of a training; None: a single one.

    Raises:
        InvalidRequest: There are fewer devices than the configuration asks for.
    """
    devices = keras.distribution.list_devices() if keras.config.backend() == "jax" else ["one"]
    found = config.devices or _max_devices(len(devices), config)
    if found > len(devices) or found % config.model_devices:
        field = "config.devices" if config.devices else "config.model_devices"
        asked = max(found, config.model_devices)
        raise InvalidRequest([(field, f"{asked} devices are asked for, and there are {len(devices)}")])
    if found == 1:
        return None
    _log.info("training on %d of %d devices, %d to a copy of the model", found, len(devices), config.model_devices)
    return Distribution(devices[:found], config.model_devices)


def _max_devices(available: int, config: ResolvedTrainingConfig) -> int:
    """The most devices whose copies of the model divide the sequences evenly."""
    copies = range(available // config.model_devices, 0, -1)
    fitting = (number for number in copies if config.micro_batch_size % number == 0)
    return next(fitting, 1) * config.model_devices
