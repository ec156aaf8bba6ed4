"""Checkpoints of a training: which are kept, and that damage never goes unnoticed."""

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from trainer_support.data import random_weights, small_architecture

from gpt2_common.errors import DataLoss
from gpt2_trainer.configuration.earlier_names import STATE_NAMES
from gpt2_trainer.formats.checkpoint import Checkpoint, TrainingState, Validation, read_checkpoint
from gpt2_trainer.training.checkpoint_manager import CheckpointManager

ARCHITECTURE = small_architecture(n_layer=1)


def checkpoint(step, *losses):
    weights = random_weights(ARCHITECTURE, seed=step)
    slots = {f"first_moment/{name}": value * 2 for name, value in weights.items()}
    validations = [Validation(step=number, loss=loss) for number, loss in enumerate(losses)]
    state = TrainingState(step=step, validations=validations, unreported_losses=[0.1 + 0.2])
    return Checkpoint(architecture=ARCHITECTURE, weights=weights, slots=slots, state=state)


def assert_same(first, second):
    assert first.state == second.state
    assert first.architecture == second.architecture
    for kind in ("weights", "slots"):
        assert getattr(first, kind).keys() == getattr(second, kind).keys()
        for name, value in getattr(first, kind).items():
            np.testing.assert_array_equal(value, getattr(second, kind)[name])


def test_newest_is_what_was_saved(tmp_path):
    folder = CheckpointManager(tmp_path / "c", keep=2, tokenizer=None)
    assert folder.newest() is None
    for step in (2, 10):
        folder.save(checkpoint(step, 3.0))
    assert_same(folder.newest(), checkpoint(10, 3.0))


def test_the_latest_and_the_best_are_kept(tmp_path):
    folder = CheckpointManager(tmp_path, keep=2, tokenizer=None)
    # The loss is lowest after step 0, which is before the training, then after step 2.
    losses = [0.5, 3.0, 1.0, 2.0, 2.5, 2.5]
    for step in range(1, 6):
        folder.save(checkpoint(step, *losses[: step + 1]))
    assert folder.steps() == [2, 4, 5]


FILES = ("weights.safetensors", "optimizer.safetensors", "state.json", "config.json", "manifest.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["delete", "empty", "cut", "flip"])
def test_damage_is_found_and_the_one_before_is_taken(tmp_path, caplog, name, damage):
    folder = CheckpointManager(tmp_path, keep=3, tokenizer=None)
    for step in (1, 2):
        folder.save(checkpoint(step, 3.0))
    path = folder.path(2) / name
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": content[:-1], "flip": flipped}[damage])
    with caplog.at_level(logging.WARNING):
        found = folder.newest()
    if (name, damage) == ("manifest.json", "cut"):
        # It ends with a line break, which says nothing.
        assert_same(found, checkpoint(2, 3.0))
        return
    assert_same(found, checkpoint(1, 3.0))
    assert "the checkpoint of step 2 is damaged" in caplog.text
    assert folder.steps() == [1]


def test_all_damaged_is_not_taken_for_none(tmp_path):
    folder = CheckpointManager(tmp_path, keep=3, tokenizer=None)
    folder.save(checkpoint(1, 3.0))
    (folder.path(1) / "weights.safetensors").write_bytes(b"")
    with pytest.raises(DataLoss, match="every checkpoint of this job is damaged"):
        folder.newest()


def test_leftovers_of_a_killed_writer_are_removed(tmp_path):
    (tmp_path / ".writing-x").mkdir()
    (tmp_path / ".writing-x/weights.safetensors").write_bytes(b"half")
    assert CheckpointManager(tmp_path, keep=1, tokenizer=None).steps() == []
    assert list(tmp_path.iterdir()) == []


def test_publishing_a_damaged_checkpoint_is_refused(tmp_path):
    folder = CheckpointManager(tmp_path, keep=1, tokenizer=None)
    folder.save(checkpoint(1, 3.0))
    (folder.path(1) / "state.json").write_text("{}")
    with pytest.raises(DataLoss, match=r"state.json has 2 bytes"):
        folder.verify(1)


# Sizes at which the disk is full in each of the files in turn.
@pytest.mark.parametrize("kilobytes", [300, 340, 380, 420])
@pytest.mark.process
def test_a_full_disk_ends_the_training_and_leaves_the_checkpoints_before(tmp_path, kilobytes):
    script = (
        f'mount -t tmpfs -o size={kilobytes}k none "{tmp_path}" '
        f'&& exec "{sys.executable}" -m trainer_support.full_disk "{tmp_path}"'
    )
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    last = found["failed"] - 1
    assert last >= 1
    assert f"no space left on the disk for the checkpoint of step {last + 1}" in found["message"]
    assert f"the checkpoint of step {last} is whole" in found["message"]
    assert found["left"] == [f"step-{step:09d}" for step in range(1, last + 1)]
    assert found["newest"] == last


def test_checkpoints_of_a_version_without_skips_and_adapters_are_read(tmp_path):
    folder = CheckpointManager(tmp_path / "c", keep=2, tokenizer=None)
    folder.save(checkpoint(2, 3.0))
    state = folder.path(2) / "state.json"
    content = json.loads(state.read_text())
    for name in ("skipped_steps", "consecutive_skipped_steps", "seconds", "stopped_because"):
        del content[name]
    content |= dict.fromkeys(STATE_NAMES, 3)
    state.write_text(json.dumps(content))
    found = read_checkpoint(folder.path(2), with_optimizer=True)
    assert found.state.consecutive_skipped_steps == 3
    assert_same(replace(found, state=replace(found.state, consecutive_skipped_steps=0)), checkpoint(2, 3.0))
    assert found.adapters == {}
