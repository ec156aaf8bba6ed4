"""A training that was killed resumes exactly as if it had not been."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load
from trainer_support import computations
from trainer_support.data import make_dataset

from gpt2.trainer.v1 import trainer_service_pb2 as pb

pytestmark = pytest.mark.process

# Where it is killed, one after the other, and what checkpoints are left then: on the first step, one before a
# checkpoint, just before it, just after it, and while the next one is being written.
KILLS = (
    ("training", 1, []),
    ("training", 39, []),
    ("training", 40, []),
    ("training", 41, ["step-000000040"]),
    ("writing", 80, [".writing-80", "step-000000040", "step-000000050"]),
)
MOMENTS = {"first_moment", "second_moment", "guard"}
# Options, kills, and the kinds of slots that are restored.
TRAININGS = {
    "AdamW": ({"learning_rate": 0.01, "noise": 0.1, "dropout": 0.1, "attention_dropout": 0.2}, KILLS, MOMENTS),
    # Muon, averaged weights, documents reshuffled and dropout. The last two kills leave something to restore.
    "small_data": ({"recipe": "small_data", "dropout": 0.1}, KILLS[3:], MOMENTS | {"second_moment_columns", "average"}),
}
HERE = Path(__file__).parent
TIMINGS = ("tokens_per_second", "seconds_left")
TRAIN = ("gpt2_trainer.jobs.train", "train_model", "TrainModelRequest")


def request(dataset_uri, options):
    config = pb.TrainConfig(
        steps=200,
        batch_size=4,
        validate_every=50,
        save_every=40,
        log_every=1,
        sample_every=100,
        sample_length=8,
        seed=7,
        **options,
    )
    model = pb.ModelConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=16)
    return pb.TrainModelRequest(dataset_uri=dataset_uri, model=model, config=config).SerializeToString()


def kill(folder, backend, sent, phase, step):
    arguments = [base64.b64encode(sent).decode(), str(folder), backend.name, phase]
    # Compiled as in the process that trains the rest: each compilation has its own last bits.
    variables = {**computations.cache_variables(backend.cache), "XLA_FLAGS": computations.QUICK_COMPILATION}
    done = subprocess.run(
        [sys.executable, "-m", "trainer_support.jobs", *arguments, str(step)],
        env={**os.environ, **variables, "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]


def logged_metrics(folder):
    lines = (folder / "artifacts/job/logs/metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMINGS} for line in lines]


def checkpoint_files(folder):
    """What is in the published checkpoint, the last step's too where that is not the best, by path."""
    checkpoint = folder / "artifacts/job/checkpoint"
    paths = (path for path in checkpoint.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(checkpoint)): path.read_bytes() for path in paths}


@pytest.mark.parametrize(
    ("backend", "training"),
    [
        pytest.param(name, training, marks=() if (name, training) == ("jax", "AdamW") else pytest.mark.exhaustive)
        for name in ("tensorflow", "jax")
        for training in TRAININGS
    ],
    indirect=["backend"],
)
def test_killed_training_repeats_every_number(backend, tmp_path, training):
    options, kills, kinds = TRAININGS[training]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        make_dataset(folder / "dataset")
    arguments = (request((whole / "dataset").as_uri(), options), str(whole), "job")
    expected = backend(computations.run_job, *TRAIN, *arguments, keras_backend=backend.name)

    checkpoints = killed / "artifacts/job/.work/checkpoints"
    sent = request((killed / "dataset").as_uri(), options)
    for phase, step, left in kills:
        kill(killed, backend, sent, phase, step)
        found = sorted(re.sub(r"^(\.writing-\d+)-.*", r"\1", path.name) for path in checkpoints.iterdir())
        assert found == left, (phase, step)

    resumed = backend(computations.run_job, *TRAIN, sent, str(killed), "job", keras_backend=backend.name)

    assert logged_metrics(killed) == logged_metrics(whole)
    assert [line["step"] for line in logged_metrics(whole) if "loss" in line] == list(range(1, 201))
    assert [line["step"] for line in logged_metrics(whole) if "validation_loss" in line] == [0, 50, 100, 150, 200]
    expected_files, files = checkpoint_files(whole), checkpoint_files(killed)
    assert files.keys() == expected_files.keys()
    assert [name for name, content in files.items() if content != expected_files[name]] == []
    [slots] = (load(content) for name, content in files.items() if name.endswith("optimizer.safetensors"))
    assert {name.partition("/")[0] for name in slots} == kinds
    for name in ("samples-100.txt", "samples-200.txt"):
        assert (killed / "artifacts/job/samples" / name).read_text() == (
            whole / "artifacts/job/samples" / name
        ).read_text()
    assert resumed["checkpoint"]["digest"] == expected["checkpoint"]["digest"]
