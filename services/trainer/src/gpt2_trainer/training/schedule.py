"""The learning rate and the weight decay as pure functions of the step."""

import math
from typing import Any

from keras import ops

from gpt2_trainer.configuration.training import ResolvedTrainingConfig


def learning_rate(config: ResolvedTrainingConfig, step: Any) -> Any:
    """Rate of one update.

    Linear warm-up from 0 over `warmup_steps`, then decay to `final_learning_rate_fraction` of the maximum at the last
    step; with `wsd` only over the last `cooldown_steps` (Hägele et al. 2024, arXiv 2405.18392). A training that
    continues another starts the schedule again (a warm restart; Loshchilov and Hutter, 2017).

    Args:
        config: The training's configuration.
        step: int32 scalar tensor, earlier updates.

    Returns:
        float32 scalar tensor.
    """
    number = ops.cast(step - config.first_step, "float32") + 1.0
    top = max(config.warmup_steps, 1)
    rising = number / top
    progress = ops.clip((number - top) / max(config.steps - config.first_step - top, 1), 0.0, 1.0)
    lowest = config.final_learning_rate_fraction
    if config.schedule == "cosine":
        falling = lowest + (1 - lowest) * 0.5 * (1 + ops.cos(math.pi * progress))
    elif config.schedule == "linear":
        falling = 1 - (1 - lowest) * progress
    elif config.schedule == "wsd":
        cooldown = config.cooldown_steps or 1
        cooled = ops.clip(1.0 - (config.steps - config.first_step - number) / cooldown, 0.0, 1.0)
        falling = 1 - (1 - lowest) * (ops.sqrt(cooled) if config.cooldown == "1-sqrt" else cooled)
    else:
        falling = ops.ones_like(progress)
    return config.learning_rate * ops.where(number < top, rising, falling)


def weight_decay(config: ResolvedTrainingConfig, step: Any) -> Any:
    """Weight decay of one update, at a learning rate of 1.

    With `linear` it falls from `weight_decay` at the first update of the training to 0 after its last one; like that of
    the learning rate, this schedule starts again in a training that continues another.

    Args:
        config: The training's configuration.
        step: int32 scalar tensor, earlier updates.

    Returns:
        A number where it is constant, so that 0 costs nothing; else a float32 scalar tensor.
    """
    if config.weight_decay_schedule == "constant" or not config.weight_decay:
        return config.weight_decay
    left = ops.cast(config.steps - step, "float32")
    return config.weight_decay / (config.steps - config.first_step) * left
