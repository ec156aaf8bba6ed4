"""A training on several devices: who has which part of the weights and of each batch. By Keras' distribution API.

Devices form a grid. Along `batch` each row of devices takes its share of a batch's sequences (data parallel); along
`model` the devices of a row share one copy of the weights, its optimizer slots and its arithmetic (model parallel, for
models that are too large for one device). Matrices that widen are divided by columns, those that narrow by rows, as in
Megatron-LM (Shoeybi et al. 2019), and the token embedding by tokens; XLA adds the exchanges that this makes necessary.
"""

import logging
from typing import Any

import keras
from keras.distribution import DeviceMesh, LayoutMap, TensorLayout, distribute_tensor

from gpt2_common.errors import InvalidRequest
from gpt2_trainer.configuration.training import TrainingOptions

_log = logging.getLogger(__name__)
_BY_COLUMNS, _BY_ROWS = (None, "model"), ("model", None)
_LAYOUTS = {
    r"h\.\d+\.(attn\.c_attn|mlp\.c_fc)\.weight": _BY_COLUMNS,
    r"h\.\d+\.(attn\.c_attn|mlp\.c_fc)\.bias": ("model",),
    r"h\.\d+\.(attn|mlp)\.c_proj\.weight": _BY_ROWS,
    r"(wte|lm_head)\.weight": _BY_ROWS,
}


class Distribution:
    """Devices, and what each of them has.

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
        """How a weight, or a slot `<slot>/<weight>` of the optimizer, is divided; where it cannot be, all have it."""
        layout = self._layouts[name.rpartition("/")[2]]
        axes = layout.axes if layout is not None and not name.startswith("lora_") else ()
        divides = all(axis is None or size % self._model_devices == 0 for axis, size in zip(axes, shape, strict=False))
        return self._layout(axes if len(axes) == len(shape) and divides else (None,) * len(shape))

    def place(self, name: str, value: Any) -> Any:
        """A weight or slot on its devices."""
        return distribute_tensor(value, self.layout(name, tuple(value.shape)))

    def divide(self, batch: Any) -> Any:
        """A batch [sequences, ...] divided by sequences; inside and outside of compiled functions."""
        return distribute_tensor(batch, self._layout(("batch", *(None,) * (len(batch.shape) - 1))))

    def everywhere(self) -> Any:
        """What JAX calls the layout of a value that all devices have."""
        return self._layout(()).backend_layout

    def _layout(self, axes: tuple[str | None, ...]) -> TensorLayout:
        return TensorLayout(axes, self._mesh)


def choose_distribution(options: TrainingOptions) -> Distribution | None:
    """The devices of a training; None: one alone, with nothing divided.

    Raises:
        InvalidRequest: There are not as many devices as the options ask for.
    """
    devices = keras.distribution.list_devices() if keras.config.backend() == "jax" else ["one"]
    found = options.devices or _most(len(devices), options)
    if found > len(devices) or found % options.model_devices:
        field = "config.devices" if options.devices else "config.model_devices"
        asked = max(found, options.model_devices)
        raise InvalidRequest([(field, f"{asked} devices are asked for, and there are {len(devices)}")])
    if found == 1:
        return None
    _log.info("training on %d of %d devices, %d to a copy of the model", found, len(devices), options.model_devices)
    return Distribution(devices[:found], options.model_devices)


def _most(available: int, options: TrainingOptions) -> int:
    """The most devices whose copies of the model divide the sequences evenly."""
    copies = range(available // options.model_devices, 0, -1)
    fitting = (number for number in copies if options.micro_batch_size % number == 0)
    return next(fitting, 1) * options.model_devices
