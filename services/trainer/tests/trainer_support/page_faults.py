"""Trains a backend's steps in this process and prints how many page faults each takes, after the first few."""

import resource
import sys

import numpy as np

from gpt2_trainer.configuration.architecture import Architecture, LayerSizes
from gpt2_trainer.configuration.training import TrainingOptions
from gpt2_trainer.model.weights import initial_weights, pad_vocabulary
from trainer_support.computations import start_backend

STEPS = 5

if __name__ == "__main__":
    start_backend(sys.argv[1], sys.argv[2])
    from gpt2_trainer.model.network import Network
    from gpt2_trainer.training.step import TrainingStep
    from gpt2_trainer.training.stepper import create_stepper

    layers = LayerSizes(n_layer=2, n_head=4, n_embd=256, n_ctx=128)
    architecture = Architecture(layers=layers, vocabulary_size=8192, end_token_id=0)
    options = TrainingOptions(
        steps=100, batch_size=8, context_length=128, learning_rate=1e-3, validate_every=100, save_every=100
    )
    weights = pad_vocabulary(initial_weights(architecture, 0), architecture)
    stepper = create_stepper(TrainingStep(Network(architecture=architecture), options), weights, None)
    batch = np.zeros((2, 8, 128), np.int32)

    def train(first: int) -> int:
        for step in range(first, first + STEPS):
            float(stepper.train(step, *batch).loss)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    before = train(0)
    print((train(STEPS) - before) / STEPS)
