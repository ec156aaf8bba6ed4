"""Our training step: `ours.py BACKEND [KERNEL…]`, with the kernels named replaced by the reference."""

import os
import sys
from dataclasses import replace

import numpy as np
from contender import Accelerator, Work, serve
from training.settings import architecture_of, options_of


def build(setting: dict) -> Work:
    """Makes a step on random tokens."""
    from gpt2_trainer.model.backend import select_backend

    backend, *without = sys.argv[1:]
    select_backend(backend)
    from gpt2_trainer.kernels.selection import create_model
    from gpt2_trainer.model.gpt2 import REFERENCE
    from gpt2_trainer.model.weights import initial_weights, pad_vocabulary
    from gpt2_trainer.training.executor import create_executor
    from gpt2_trainer.training.step import TrainingStep

    architecture, options = architecture_of(setting), options_of(setting)
    model = create_model(architecture, options.precision, training=True)
    references = {name: getattr(REFERENCE, name) for name in without}
    model = replace(model, kernels=replace(model.kernels, **references))
    weights = pad_vocabulary(initial_weights(architecture, 0), architecture)
    executor = create_executor(TrainingStep(model, options), weights, None)
    random = np.random.default_rng(0)
    shape = (setting["batch"], setting["length"] + 1)
    numbers = iter(range(100_000))

    def work() -> float:
        tokens = random.integers(0, setting["vocabulary"], shape, dtype=np.int32)
        return float(executor.train(next(numbers), tokens[:, :-1], tokens[:, 1:]).loss)

    return work


def accelerator() -> Accelerator | None:
    """The GPU that JAX computes on."""
    if sys.argv[1] != "jax":
        return None
    import jax

    device = jax.local_devices()[0]
    statistics = device.memory_stats() if device.platform == "gpu" else None
    return Accelerator(device.device_kind, statistics["peak_bytes_in_use"]) if statistics else None


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
serve(build, accelerator)
