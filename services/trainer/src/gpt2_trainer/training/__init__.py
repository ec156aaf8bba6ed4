"""The training loop and its parts: data order, optimizer, steps on each backend, checkpoints, reports."""
