"""Skips updates whose loss or gradient norm is NaN or Inf, and those of loss spikes.

The decision is made on the device, inside the compiled step, from running means that are part of the optimizer's slots,
so a resumed training decides the same.
"""

import math
from typing import Any

import numpy as np
from keras import ops

from gpt2_trainer.configuration.training import ResolvedTrainingConfig
from gpt2_trainer.model.weights import Weights

# Names in `optimizer.safetensors`, whose format keeps them.
_LOSS, _NORM, _COUNT = "guard/loss", "guard/gradient_norm", "guard/updates"
_DECAY = 0.98
_WARMUP_UPDATES = 20


def initial_statistics() -> Weights:
    """Slots before the first update, float32 scalars: running means of loss and gradient norm, and applied updates."""
    return {name: np.zeros((), np.float32) for name in (_LOSS, _NORM, _COUNT)}


def should_apply(config: ResolvedTrainingConfig, slots: dict[str, Any], loss: Any, norm: Any) -> Any:
    """Whether an update is applied rather than skipped.

    An update is skipped when its loss or gradient norm is not finite. After the first 20 it is skipped too when its
    loss exceeds the running mean by more than ln(`spike_factor`), so its perplexity exceeds the running geometric mean
    by that factor; or, without clipping, when its gradient norm exceeds the running mean by it. A clipped gradient does
    no harm, and to skip it would stall the training: with the same weights, the next gradient is as great.

    Args:
        config: The training's configuration.
        slots: Slots of `initial_statistics` or `updated_statistics`.
        loss: float32 scalar, mean loss of the batch.
        norm: float32 scalar, global norm of its gradients before clipping.

    Returns:
        bool scalar.
    """
    finite = ops.logical_and(ops.isfinite(loss), ops.isfinite(norm))
    if config.spike_factor is None:
        return finite
    early = slots[_COUNT] < _WARMUP_UPDATES
    # Bias correction, as the running means start at 0 (Kingma and Ba, section 3).
    correction = ops.maximum(1 - ops.power(_DECAY, slots[_COUNT]), 1e-6)
    calm = loss <= slots[_LOSS] / correction + math.log(config.spike_factor)
    if config.clip_norm is None:
        calm = ops.logical_and(calm, norm <= config.spike_factor * slots[_NORM] / correction)
    return ops.logical_and(finite, ops.logical_or(early, calm))


def updated_statistics(slots: dict[str, Any], loss: Any, norm: Any) -> dict[str, Any]:
    """Slots after an update that was applied; arguments as of `should_apply`."""
    return {
        _LOSS: _DECAY * slots[_LOSS] + (1 - _DECAY) * loss,
        _NORM: _DECAY * slots[_NORM] + (1 - _DECAY) * norm,
        _COUNT: slots[_COUNT] + 1,
    }
