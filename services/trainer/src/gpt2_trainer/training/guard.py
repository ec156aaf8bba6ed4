"""Leaves out updates that would do harm: those of losses that are no numbers, and of sudden great ones.

All is decided on the device, inside the compiled step, and what it rests on is part of the training's state, so that a
resumed training decides the same. An update is left out when its loss or gradient norm is not finite; or when, after
the first updates, its loss is over the running mean by more than ln(`spike_factor`), which is to say that the
perplexity is over as many times its running (geometric) mean; or, where gradients are not clipped, when its gradient
norm is over as many times the running mean. A clipped gradient does no harm however great it was, and leaving it out
would leave the training where it is: with the same weights, the next batch's gradient is as great.
"""

import math
from typing import Any

import numpy as np
from keras import ops

from gpt2_trainer.configuration.training import TrainingOptions
from gpt2_trainer.model.weights import Weights

_LOSS, _NORM, _COUNT = "guard/loss", "guard/gradient_norm", "guard/updates"
SLOTS = (_LOSS, _NORM, _COUNT)
"""float32 scalars: running means of loss and gradient norm over updates that were made, and the count of these."""
_MEMORY = 0.98
_FIRST_UPDATES = 20


def first_guard() -> Weights:
    """The guard's state before the first update."""
    return {name: np.zeros((), np.float32) for name in SLOTS}


def is_harmless(options: TrainingOptions, state: dict[str, Any], loss: Any, norm: Any) -> Any:
    """Whether an update is to be made, as a bool scalar.

    Args:
        options: Training options.
        state: The guard's state.
        loss: float32 scalar, mean loss of the batch.
        norm: float32 scalar, global norm of its gradients before clipping.
    """
    finite = ops.logical_and(ops.isfinite(loss), ops.isfinite(norm))
    if not options.spike_factor:
        return finite
    early = state[_COUNT] < _FIRST_UPDATES
    # The mean of few values, as a running mean begins at 0.
    share = ops.maximum(1 - ops.power(_MEMORY, state[_COUNT]), 1e-6)
    calm = loss <= state[_LOSS] / share + math.log(options.spike_factor)
    if not options.clip_norm:
        calm = ops.logical_and(calm, norm <= options.spike_factor * state[_NORM] / share)
    return ops.logical_and(finite, ops.logical_or(early, calm))


def next_guard(state: dict[str, Any], loss: Any, norm: Any) -> dict[str, Any]:
    """The guard's state after an update that was made; arguments as for `is_harmless`."""
    return {
        _LOSS: _MEMORY * state[_LOSS] + (1 - _MEMORY) * loss,
        _NORM: _MEMORY * state[_NORM] + (1 - _MEMORY) * norm,
        _COUNT: state[_COUNT] + 1,
    }
