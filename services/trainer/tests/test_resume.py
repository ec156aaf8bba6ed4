"""A training that was killed goes on exactly as if it had not been."""

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from trainer_support import computations
from trainer_support.data import make_dataset

from gpt2.trainer.v1 import trainer_service_pb2 as pb

HERE = Path(__file__).parent
TRAIN = ("gpt2_trainer.jobs.train", "train_model", "TrainModelRequest")


def request(dataset_uri):
    config = pb.TrainConfig(
        steps=22,
        batch_size=4,
        learning_rate=0.01,
        noise=0.1,
        validate_every=6,
        save_every=4,
        report_every=3,
        sample_every=11,
        sample_length=8,
        seed=7,
    )
    model = pb.ModelConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=16)
    return pb.TrainModelRequest(dataset_uri=dataset_uri, model=model, config=config).SerializeToString()


def kill(folder, backend, phase, step):
    arguments = [base64.b64encode(request((folder / "dataset").as_uri())).decode(), str(folder), backend, phase]
    done = subprocess.run(
        [sys.executable, "-m", "trainer_support.jobs", *arguments, str(step)],
        env={**os.environ, "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]


def figures(folder):
    lines = (folder / "artifacts/job/logs/metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "tokens_per_second"} for line in lines]


def test_killed_training_repeats_every_number(backend, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        make_dataset(folder / "dataset")
    arguments = (request((whole / "dataset").as_uri()), str(whole), "job")
    expected = backend(computations.run_job, *TRAIN, *arguments, keras_backend=backend.name)

    # Once between two checkpoints, once while one is being written; which backend gets which does not matter.
    kill(killed, backend.name, *{"tensorflow": ("training", 15), "jax": ("writing", 18)}[backend.name])
    left = sorted(path.name for path in (killed / "artifacts/job/.work/checkpoints").iterdir())
    if backend.name == "tensorflow":
        assert left == ["step-000000008", "step-000000012"]
    else:
        assert left[0].startswith(".writing-")
        assert left[1:] == ["step-000000012", "step-000000016"]

    arguments = (request((killed / "dataset").as_uri()), str(killed), "job")
    resumed = backend(computations.run_job, *TRAIN, *arguments, keras_backend=backend.name)

    assert figures(killed) == figures(whole)
    assert [line["step"] for line in figures(whole) if "loss" in line] == [3, 6, 9, 12, 15, 18, 21, 22]
    assert [line["step"] for line in figures(whole) if "validation_loss" in line] == [0, 6, 12, 18, 22]
    for name in ("weights.safetensors", "optimizer.safetensors", "state.json"):
        assert (killed / "artifacts/job/checkpoint" / name).read_bytes() == (
            whole / "artifacts/job/checkpoint" / name
        ).read_bytes(), name
    for name in ("samples-11.txt", "samples-22.txt"):
        assert (killed / "artifacts/job/samples" / name).read_text() == (
            whole / "artifacts/job/samples" / name
        ).read_text()
    assert resumed["checkpoint"]["digest"] == expected["checkpoint"]["digest"]
