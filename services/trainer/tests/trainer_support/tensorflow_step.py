"""A process that takes two training steps on TensorFlow: `python -m trainer_support.tensorflow_step CACHE`.

Prints a digest of the weights, how many programs came from the shared folder, and how many of all it compiled itself.
"""

import hashlib
import json
import os
import re
import sys
from pathlib import Path

import numpy as np

from gpt2_trainer.configuration.training import ResolvedTrainingConfig
from gpt2_trainer.model.backend import select_backend
from gpt2_trainer.model.compile_cache import CompileCache, CompileCacheOptions
from gpt2_trainer.model.weights import pad_vocabulary
from trainer_support.data import random_weights, small_architecture


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.pb")}


def main() -> None:
    programs = CompileCache(
        CompileCacheOptions(Path(sys.argv[1]), 64 << 20), "tensorflow", "train", keep_tensorflow=True
    )
    own = Path(re.search(r"cache_directory=(\S+)", os.environ["TF_XLA_FLAGS"])[1])
    taken = times(own)
    select_backend("tensorflow")
    from gpt2_trainer.kernels.selection import create_model
    from gpt2_trainer.training.executor import create_executor
    from gpt2_trainer.training.step import TrainingStep

    architecture = small_architecture(n_layer=1)
    config = ResolvedTrainingConfig(
        steps=10, batch_size=2, context_length=8, learning_rate=0.1, validate_every=10, save_every=10
    )
    step = TrainingStep(create_model(architecture, training=True), config)
    executor = create_executor(step, pad_vocabulary(random_weights(architecture), architecture), None)
    for number, tokens in enumerate(np.random.default_rng(0).integers(0, 200, (2, 2, 9), np.int32)):
        executor.train(number, tokens[:, :-1], tokens[:, 1:])
    weights = executor.weights()
    compiled = times(own).items() - taken.items()
    published = programs.publish()
    digest = hashlib.sha256(b"".join(weights[name].tobytes() for name in sorted(weights))).hexdigest()
    print(json.dumps({"digest": digest, "taken": len(taken), "compiled": len(compiled), "published": published}))


if __name__ == "__main__":
    main()
