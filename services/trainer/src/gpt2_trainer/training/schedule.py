"""The learning rate as a pure function of the step."""

import math
from typing import Any

from keras import ops

from gpt2_trainer.configuration.training import TrainingOptions


def learning_rate(options: TrainingOptions, step: Any) -> Any:
    """Rate of one update.

    It rises in a straight line from 0 over `warmup_steps`, then goes from the highest rate at the end of the warm-up
    to `final_learning_rate_fraction` of it at the last step. In a training that continues another, all of this begins
    again with its own first step (a warm restart; Loshchilov and Hutter, 2017); `constant` stays the same throughout.

    Args:
        options: Training options.
        step: Updates made before this one, int32 scalar tensor.

    Returns:
        float32 scalar tensor.
    """
    number = ops.cast(step - options.first_step, "float32") + 1.0
    top = max(options.warmup_steps, 1)
    rising = number / top
    progress = ops.clip((number - top) / max(options.steps - options.first_step - top, 1), 0.0, 1.0)
    lowest = options.final_learning_rate_fraction
    if options.schedule == "cosine":
        falling = lowest + (1 - lowest) * 0.5 * (1 + ops.cos(math.pi * progress))
    elif options.schedule == "linear":
        falling = 1 - (1 - lowest) * progress
    else:
        falling = ops.ones_like(progress)
    return options.learning_rate * ops.where(number < top, rising, falling)
