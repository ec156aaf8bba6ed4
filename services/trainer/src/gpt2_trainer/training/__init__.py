"""Training: the loop and its callbacks, steps and their executors, optimizer, data, checkpoints, metrics."""
