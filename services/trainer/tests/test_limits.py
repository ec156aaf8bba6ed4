"""When a training ends: after epochs, in time, or when it gets no better; the same after an interruption."""

import shutil

import numpy as np
import pytest
from trainer_support.jobs import folder, metrics

from gpt2_trainer.configuration.training import ResolvedTrainingConfig
from gpt2_trainer.formats.checkpoint import Validation, read_checkpoint
from gpt2_trainer.training.limits import is_exhausted


def last_step(outputs):
    return int(outputs["checkpoint"]["last_step"])


def test_an_epoch_is_one_pass(train):
    # 3,000 tokens are 187 sequences of 16, which are 24 updates of 8.
    outputs = train(steps=0, epochs=1, batch_size=8)
    assert last_step(outputs) == 24
    assert [line["epoch"] for line in metrics(outputs) if "epoch" in line][-1] == pytest.approx(24 * 8 / 187)


def test_a_time_limit_ends_a_training_whole(train):
    outputs = train(steps=10_000_000, max_seconds=0.5, log_every=1000, sample_every=1_000_000)
    assert outputs["checkpoint"]["stopped_because"] == "max_seconds"
    step = last_step(outputs)
    assert 0 < step < 10_000_000
    lines = metrics(outputs)
    assert [line["step"] for line in lines if "validation_loss" in line] == [0, step]
    assert [line["step"] for line in lines if "loss" in line][-1] == step
    assert (folder(outputs["samples"]) / f"samples-{step}.txt").is_file()


def test_time_counts_over_attempts(train, tmp_path):
    config = {"steps": 10_000_000, "max_seconds": 0.5, "log_every": 1000}
    first = train(**config)
    step = last_step(first)
    saved = tmp_path / f"artifacts/job/.work/checkpoints/step-{step:09d}"
    assert read_checkpoint(saved, with_optimizer=False).state.seconds >= 0.5
    assert last_step(train(**config)) == step


@pytest.mark.parametrize(
    ("losses", "exhausted"),
    [
        ([], False),
        ([9.0, 3.0, 2.0, 1.0], False),
        ([9.0, 3.0, 3.1], False),
        ([9.0, 3.0, 3.1, 3.2], True),
        # What is before the training does not count.
        ([1.0, 3.0, 2.0], False),
        # An improvement by less than 0.1 is none, but small ones add up.
        ([9.0, 3.0, 2.95, 2.92], True),
        ([9.0, 3.0, 2.95, 2.88], False),
        ([9.0, 3.0, float("nan"), float("nan")], True),
    ],
)
def test_patience(losses, exhausted):
    options = ResolvedTrainingConfig(
        steps=9,
        context_length=8,
        learning_rate=0.1,
        validate_every=1,
        save_every=1,
        early_stopping_patience=2,
        early_stopping_min_delta=0.1,
    )
    validations = [Validation(step=step, loss=loss) for step, loss in enumerate(losses)]
    assert is_exhausted(options, validations) == exhausted


def test_a_training_that_gets_no_better_ends_with_its_best(train, tmp_path):
    config = {"steps": 200, "learning_rate": 0.5, "optimizer": "adam", "validate_every": 2, "log_every": 5}
    config |= {"early_stopping_patience": 2, "save_every": 200, "spike_factor": 0.0, "warmup_steps": 20}
    outputs = train(**config)
    assert outputs["checkpoint"]["stopped_because"] == "early_stopping"
    step = last_step(outputs)
    assert step < 200
    losses = {line["step"]: line["validation_loss"] for line in metrics(outputs) if "validation_loss" in line}
    best = min((number for number in losses if number), key=losses.get)
    assert outputs["checkpoint"]["step"] == str(best) == str(step - 4)
    assert [line["step"] for line in metrics(outputs) if "loss" in line][-1] == step
    assert np.isfinite(losses[best])

    shutil.rmtree(tmp_path / f"artifacts/job/.work/checkpoints/step-{step:09d}")
    assert train(**config)["checkpoint"]["digest"] == outputs["checkpoint"]["digest"]


@pytest.mark.parametrize(
    ("phase", "step"),
    [("validating", 4), pytest.param("validating", 6, marks=pytest.mark.exhaustive), ("training", 2)],
)
def test_a_training_that_is_suspended_resumes_where_it_was(train, phase, step):
    """Also in a validation, which the next attempt repeats before it trains on, or ends."""
    config = {"validate_every": 2, "log_every": 2, "save_every": 6}
    assert train(suspend_at=(phase, step), **config)
    resumed, whole = train(**config), train(job_id="whole", **config)
    files = [folder(outputs["checkpoint"]) / "state.json" for outputs in (resumed, whole)]
    assert files[0].read_text() == files[1].read_text()
    lines = [
        [(line["step"], line.get("loss"), line.get("validation_loss")) for line in metrics(outputs)]
        for outputs in (resumed, whole)
    ]
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    "config",
    [
        {"optimizer": "adafactor"},
        pytest.param({"optimizer": "sgd", "momentum": 0.9}, marks=pytest.mark.exhaustive),
    ],
)
def test_other_optimizers_go_on_exactly(train, tmp_path, config):
    config |= {"validate_every": 3, "save_every": 3, "learning_rate": 0.05}
    first = train(**config)
    losses = [line["validation_loss"] for line in metrics(first) if "validation_loss" in line]
    assert losses[-1] < losses[0] - 0.05
    shutil.rmtree(tmp_path / "artifacts/job/.work/checkpoints/step-000000006")
    assert train(**config)["checkpoint"]["digest"] == first["checkpoint"]["digest"]
