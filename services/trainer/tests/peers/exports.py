"""Compares the logits of trained and transplanted models with those that `transformers` computes from their exports.

    make setup peers
    .venv/bin/python services/trainer/tests/peers/exports.py

A small model is trained by the recipe for little text (Muon, averaged weights), exported, transplanted to another
tokenizer, and exported again, all by the trainer's own jobs, on TensorFlow, as a SavedModel needs it. Ours are the
logits of the checkpoints, by the kernels that are chosen here. It is no test of the suite, as it needs PyTorch, and
the last bits of a training depend on the processor; `test_peers.py` compares with stored answers.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

from trainer_support import computations
from trainer_support.data import MERGES, make_dataset, vocabulary
from trainer_support.jobs import folder, make_context

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.artifacts import ArtifactWriter
from gpt2_common.vocabulary.files import write_vocabulary
from gpt2_common.vocabulary.vocabulary import Vocabulary
from gpt2_contracts.tokenizer import END_TOKEN
from gpt2_trainer.formats.checkpoint import read_checkpoint
from gpt2_trainer.jobs.export import export_model
from gpt2_trainer.jobs.import_checkpoint import import_checkpoint
from gpt2_trainer.jobs.train import train_model

HERE = Path(__file__).parent
PEERS = HERE.parents[3] / ".peers/bin/python"
MAX_DIFFERENCE = 1e-4


def main():
    if not PEERS.exists():
        raise SystemExit(f"{PEERS} does not exist; install the libraries that ours is compared with by `make peers`")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        make_dataset(root / "dataset")
        trained = run(root, "train", train_model, train_request(root))
        request = pb.ImportCheckpointRequest(uri=trained["uri"], target_tokenizer_uri=make_target(root / "target"))
        transplanted = run(root, "transplant", import_checkpoint, request)
        for title, checkpoint in {"trained": trained, "transplanted": transplanted}.items():
            compare(root, title, checkpoint)


def train_request(root):
    model = pb.ModelConfig(n_layer=2, n_head=4, n_embd=32, n_ctx=16)
    config = pb.TrainConfig(recipe="small_data", steps=100, batch_size=8, sample_length=1)
    return pb.TrainModelRequest(dataset_uri=(root / "dataset").as_uri(), model=model, config=config)


def make_target(target):
    """Commits a tokenizer that has the model's tokens in another order, and more of them. Returns its URI."""
    merges = [*MERGES, ("Ġ", "an"), ("x", "y")]
    symbols = sorted(set(vocabulary()) - {END_TOKEN}, reverse=True)
    tokens = [*symbols, *("".join(merge) for merge in merges[len(MERGES) :]), END_TOKEN]
    working = target.with_name("target-work")
    working.mkdir()
    write_vocabulary(Vocabulary.from_parts({token: number for number, token in enumerate(tokens)}, merges), working)
    return ArtifactWriter(target.as_uri(), "tokenizer", working, {}, ()).commit().uri


def run(root, job_id, function, request):
    """Runs a job. Returns the URI and the properties of what it makes: a checkpoint or a model."""
    outputs = function(request, make_context(root, job_id, keras_backend="tensorflow"))
    made = {item.name: {"uri": item.uri, **item.properties} for item in outputs}
    return made.get("checkpoint") or made["model"]


def compare(root, title, checkpoint):
    """Prints how far ours and theirs are apart; fails where that is more than errors of float32."""
    read = read_checkpoint(folder(checkpoint), with_optimizer=False)
    size = read.architecture.vocabulary_size
    token_ids = np.random.default_rng(0).integers(0, size, (4, read.architecture.layers.n_ctx), dtype=np.int32)
    export = folder(run(root, f"export-{title}", export_model, pb.ExportModelRequest(checkpoint_uri=checkpoint["uri"])))
    theirs = root / "theirs"
    theirs.mkdir(exist_ok=True)
    np.save(theirs / "token_ids.npy", token_ids)
    subprocess.run([PEERS, HERE / "logits.py", "transformers", export, theirs], check=True)
    expected = np.load(theirs / "transformers.npy", allow_pickle=False)
    ours = computations.model_logits(read.architecture, read.weights, token_ids, fast=True)[..., :size]
    difference = np.abs(ours - expected).max()
    print(f"{title}: logits of {size} tokens at most {difference:.2g} apart, of up to {np.abs(expected).max():.3g}")
    if difference > MAX_DIFFERENCE:
        raise SystemExit(f"{title}: more than {MAX_DIFFERENCE:g} apart")


if __name__ == "__main__":
    main()
