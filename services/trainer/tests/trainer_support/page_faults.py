"""Trains a backend's steps in this process and prints how many page faults a step takes once the heap has its size.

The heap grows once in a while, when threads meet in another order than before: the calmest of several windows counts.
"""

import resource
import sys
from itertools import pairwise

import numpy as np

from gpt2_trainer.configuration.architecture import Architecture, LayerSizes
from gpt2_trainer.configuration.training import ResolvedTrainingConfig
from gpt2_trainer.model.weights import initial_weights, pad_vocabulary
from trainer_support.computations import start_backend

STEPS = 5
WINDOWS = 6

if __name__ == "__main__":
    start_backend(sys.argv[1], sys.argv[2])
    from gpt2_trainer.kernels.selection import create_model
    from gpt2_trainer.training.executor import create_executor
    from gpt2_trainer.training.step import TrainingStep

    layers = LayerSizes(n_layer=2, n_head=4, n_embd=256, n_ctx=128)
    architecture = Architecture(layers=layers, vocabulary_size=8192, end_token_id=0)
    options = ResolvedTrainingConfig(
        steps=100, batch_size=8, context_length=128, learning_rate=1e-3, validate_every=100, save_every=100
    )
    weights = pad_vocabulary(initial_weights(architecture, 0), architecture)
    executor = create_executor(TrainingStep(create_model(architecture, training=True), options), weights, None)
    batch = np.zeros((2, 8, 128), np.int32)

    def train(first: int) -> int:
        for step in range(first, first + STEPS):
            float(executor.train(step, *batch).loss)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    faults = [train(STEPS * window) for window in range(WINDOWS + 1)]
    print(min(later - earlier for earlier, later in pairwise(faults)) / STEPS)
