"""Trains in this process and prints the greatest memory that it took, and the estimate, in bytes."""

import resource
import sys
from pathlib import Path

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.configuration.resolution import new_layer_sizes, resolve_training_config
from gpt2_trainer.jobs.train import train_model
from gpt2_trainer.memory import estimate_memory
from trainer_support.data import END_TOKEN_ID, VOCABULARY_SIZE
from trainer_support.jobs import make_context

if __name__ == "__main__":
    request = pb.TrainModelRequest.FromString(bytes.fromhex(sys.argv[1]))
    backend = sys.argv[3] if len(sys.argv) > 3 else "jax"
    train_model(request, make_context(Path(sys.argv[2]), keras_backend=backend))
    layers = new_layer_sizes(request)
    architecture = Architecture(layers=layers, vocabulary_size=VOCABULARY_SIZE, end_token_id=END_TOKEN_ID)
    estimate = estimate_memory(architecture, resolve_training_config(request, layers.n_ctx, 10_000), on_host=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{estimate}, overhead {estimate.overhead:,}, copies {estimate.copies:,}", file=sys.stderr)
    print(peak, estimate.total)
