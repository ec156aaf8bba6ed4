"""Dropout (Srivastava et al. 2014) whose masks depend on seed, step, micro-batch, layer and place alone.

No random generator keeps a state: each mask has its own key. So a resumed training draws the masks of one that was
never interrupted, and rematerialisation draws in the backward pass those of the forward pass.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from keras import config, ops
from numpy.typing import NDArray

from gpt2_trainer.configuration.training import DropoutRates

Place = Literal["embedding", "attention", "attention_output", "mlp_output"]
_PLACES: tuple[Place, ...] = ("embedding", "attention", "attention_output", "mlp_output")
_VALUES = 1 << 32


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """Dropout of one training pass, at the places of GPT-2 in `transformers`.

    Args:
        rates: Fractions that are set to 0.
        key: uint32 [2] on JAX, int32 [2] on TensorFlow, of the step and the micro-batch.
    """

    rates: DropoutRates
    key: Any

    def apply(self, values: Any, place: Place, layer: int = 0) -> Any:
        """Sets a random fraction of values to 0 and divides the others by 1 - rate, in float32.

        Args:
            values: Values of any shape, float32 or bfloat16.
            place: Where in the network: the embeddings' sum, the attention weights, or what a sub-layer adds.
            layer: The layer, from 0.

        Returns:
            As `values`.
        """
        rate = self.rates.embedding if place == "embedding" else self._layer_rate(place)
        if rate == 0:
            return values
        kept = keep_mask(fold_in(self.key, layer * len(_PLACES) + _PLACES.index(place)), ops.shape(values), rate)
        return ops.cast(ops.where(kept, ops.cast(values, "float32") * (1 / (1 - rate)), 0.0), values.dtype)

    def _layer_rate(self, place: Place) -> float:
        return self.rates.attention if place == "attention" else self.rates.residual


def first_key(seed: int) -> NDArray[np.uint32]:
    """Key uint32 [2] of a training's seed, from which the keys of its steps are derived."""
    return np.frombuffer(hashlib.blake2b(f"dropout/{seed}".encode(), digest_size=8).digest(), "<u4").astype(np.uint32)


def fold_in(key: Any, number: Any) -> Any:
    """A key derived from another and an int32 scalar: equal inputs give equal keys, others independent ones."""
    if config.backend() == "jax":
        import jax  # heavy, and wanted with this backend alone

        return jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(key, impl="threefry2x32"), number))
    import tensorflow as tf  # heavy, and wanted with this backend alone

    key = key.view(np.int32) if isinstance(key, np.ndarray) else key
    return tf.random.fold_in(tf.convert_to_tensor(key), tf.cast(number, tf.int32), alg="philox")


def keep_mask(key: Any, shape: tuple[Any, ...], rate: float) -> Any:
    """Bool [*shape], each element False with probability `rate`, to within 2**-32; a pure function of the key."""
    threshold = min(round(rate * _VALUES), _VALUES - 1)
    if config.backend() == "jax":
        import jax  # heavy, and wanted with this backend alone

        bits = jax.random.bits(jax.random.wrap_key_data(key, impl="threefry2x32"), shape, "uint32")
        return bits >= np.uint32(threshold)
    import tensorflow as tf  # heavy, and wanted with this backend alone

    bits = tf.random.stateless_uniform(shape, key, minval=None, maxval=None, dtype=tf.int32, alg="philox")
    return bits >= np.int32(threshold - _VALUES // 2)
