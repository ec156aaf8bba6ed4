"""Saves checkpoints in a folder until its disk is full, and prints as JSON what came of it."""

import json
import sys
from pathlib import Path

from gpt2_common.errors import ResourceExhausted
from gpt2_trainer.formats.checkpoint import Checkpoint, TrainingState
from gpt2_trainer.training.checkpoint_manager import CheckpointManager
from trainer_support.data import random_weights, small_architecture

if __name__ == "__main__":
    root = Path(sys.argv[1])
    architecture = small_architecture(n_layer=1)
    weights = random_weights(architecture)
    slots = {f"first_moment/{name}": value for name, value in weights.items()}
    folder = CheckpointManager(root / "checkpoints", keep=1000, tokenizer=None)
    message = ""
    for step in range(1, 1000):
        state = TrainingState(step=step)
        try:
            folder.save(Checkpoint(architecture=architecture, weights=weights, slots=slots, state=state))
        except ResourceExhausted as error:
            message = error.message
            break
    left = sorted(path.name for path in (root / "checkpoints").iterdir())
    newest = CheckpointManager(root / "checkpoints", keep=1000, tokenizer=None).newest()
    print(json.dumps({"message": message, "left": left, "newest": newest.state.step, "failed": step}))
