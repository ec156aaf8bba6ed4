"""The KV cache of a decoder: keys and values in tensors of fixed capacity, so that few shapes are compiled."""

from typing import NamedTuple

from keras import ops

from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.model.gpt2 import Tensor


class FixedKVCache(NamedTuple):
    """Keys and values by layer, a tree of tensors. Implements `gpt2.KVCache`.

    Args:
        layers: Keys and values of each layer, [batch · heads, capacity, head_size].
        length: int32 scalar, tokens held. What is stored beyond them is not seen.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    length: Tensor

    @classmethod
    def empty(cls, architecture: Architecture, batch: int, capacity: int, dtype: str, length: Tensor) -> "FixedKVCache":
        """A cache without tokens for so many sequences."""
        shape = (batch * architecture.layers.n_head, capacity, architecture.head_size)
        layers = range(architecture.layers.n_layer)
        return cls(tuple((ops.zeros(shape, dtype), ops.zeros(shape, dtype)) for _ in layers), length)

    @property
    def capacity(self) -> int:
        """Tokens that it has room for."""
        return int(self.layers[0][0].shape[1])

    def mask(self, positions: Tensor) -> Tensor:
        """See `gpt2.KVCache`."""
        return ops.arange(self.capacity, dtype="int32")[None, :] <= positions[:, None]

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple["FixedKVCache", Tensor, Tensor]:
        """See `gpt2.KVCache`. `length` stays, as it is where the other layers append, too."""
        place = (0, self.length, 0)
        keys, values = (
            ops.slice_update(old, place, new) for old, new in zip(self.layers[layer], (keys, values), strict=True)
        )
        layers = (*self.layers[:layer], (keys, values), *self.layers[layer + 1 :])
        return self._replace(layers=layers), keys, values

    def grown(self, capacity: int) -> "FixedKVCache":
        """The cache with at least a capacity."""
        missing = capacity - self.capacity
        if missing <= 0:
            return self
        widths = ((0, 0), (0, missing), (0, 0))
        layers = tuple((ops.pad(keys, widths), ops.pad(values, widths)) for keys, values in self.layers)
        return self._replace(layers=layers)

    def repeated(self, heads: int, times: int) -> "FixedKVCache":
        """The cache with each sequence repeated, for several samples of each prompt."""

        def repeat(rows: Tensor) -> Tensor:
            shape = rows.shape
            prompts = ops.reshape(rows, (shape[0] // heads, heads, *shape[1:]))
            return ops.reshape(ops.repeat(prompts, times, axis=0), (shape[0] * times, *shape[1:]))

        return self._replace(layers=tuple((repeat(keys), repeat(values)) for keys, values in self.layers))
