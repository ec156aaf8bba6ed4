"""TrainModel as a job: its outputs, its lineage, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from trainer_support import computations
from trainer_support.data import (
    END_TOKEN_ID,
    VOCABULARY_SIZE,
    make_checkpoint,
    make_dataset,
    random_weights,
    small_architecture,
)
from trainer_support.jobs import folder, metrics

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_trainer.training.metrics_log import REPORTED

TRAIN = ("gpt2_trainer.jobs.train", "train_model", "TrainModelRequest")
MODEL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_ctx": 16}


def test_outputs_tell_what_happened(train):
    outputs = train(validate_every=2, save_every=3, log_every=4, sample_num=2, sample_prompt="Über", seed=5)
    assert set(outputs) == {"checkpoint", "logs", "samples"}
    checkpoint = folder(outputs["checkpoint"])
    lines = metrics(outputs)
    losses = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    assert list(losses) == [0, 2, 4, 6]
    assert losses[6] < losses[0] - 0.1
    best = min((step for step in losses if step), key=losses.get)
    properties = outputs["checkpoint"]
    assert (properties["step"], properties["last_step"]) == (str(best), "6")
    assert float(properties["validation_loss"]) == losses[best]
    assert float(properties["initial_validation_loss"]) == losses[0]
    assert [line["step"] for line in lines if "loss" in line] == [4, 6]
    assert set(lines[-2]) == {"step", *REPORTED} - {"mfu", "embeddings_only"}
    assert lines[-2]["epoch"] == pytest.approx(6 * 4 / 187)
    assert (lines[-2]["seconds_left"], lines[-2]["skipped_steps"]) == (0, 0)
    assert properties["stopped_because"] == "steps"
    assert lines[-1]["validation_perplexity"] == pytest.approx(np.exp(losses[6]))
    dataset = folder(outputs["checkpoint"]).parents[2] / "dataset"
    targets = np.concatenate([np.load(path) for path in sorted(dataset.glob("validation-*"))])[1 : 24 * 16 + 1]
    # Each token of this dataset but the end token is one byte.
    bytes_per_token = (targets != END_TOKEN_ID).mean()
    assert lines[-1]["validation_bits_per_byte"] == pytest.approx(losses[6] / np.log(2) / bytes_per_token)
    assert float(properties["validation_bits_per_byte"]) == pytest.approx(losses[best] / np.log(2) / bytes_per_token)
    state = json.loads((checkpoint / "state.json").read_text())
    assert state["step"] == best
    assert state["config"]["seed"] == 5
    assert json.loads((checkpoint / "config.json").read_text()) == {
        **MODEL,
        "vocabulary_size": VOCABULARY_SIZE,
        "end_token_id": END_TOKEN_ID,
    }
    weights = load_file(checkpoint / "weights.safetensors")
    assert weights["wte.weight"].shape == (VOCABULARY_SIZE, 16)
    slots = load_file(checkpoint / "optimizer.safetensors")
    moments = {f"{slot}/{name}" for slot in ("first_moment", "second_moment") for name in weights}
    assert set(slots) == moments | {"guard/loss", "guard/gradient_norm", "guard/updates"}
    assert slots["guard/updates"] == best
    assert slots["first_moment/wte.weight"].shape == (VOCABULARY_SIZE, 16)
    assert (checkpoint / "tokenizer/tokenizer.json").is_file()
    samples = (folder(outputs["samples"]) / "samples-6.txt").read_text()
    assert samples.count("Über") == 2
    parents = json.loads((checkpoint / "manifest.json").read_text())["parents"]
    assert [parent["kind"] for parent in parents] == ["dataset"]


def test_samples_are_taken_before_the_first_update_and_after_some(train):
    def texts(**config):
        samples = folder(train(sample_every=4, sample_length=12, **config)["samples"])
        return {path.name: path.read_text() for path in samples.glob("samples-*")}

    slow, fast = texts(learning_rate=1e-9), texts(learning_rate=0.02, job_id="fast")
    assert set(slow) == {"samples-0.txt", "samples-4.txt", "samples-6.txt"}
    assert fast["samples-0.txt"] == slow["samples-0.txt"]
    assert fast["samples-6.txt"] != slow["samples-6.txt"]


def test_tensorboard_has_metrics_config_and_samples(train):
    outputs = train(log_every=3, settings={"device_peak_flops": 1e9})
    [events] = folder(outputs["logs"]).glob("events.out.tfevents.*")
    values = [value for event in EventFileLoader(str(events)).Load() for value in event.summary.value]
    titles = {value.tag: value.metadata.display_name for value in values}
    [start] = [value.metadata.plugin_data.content for value in values if value.tag.startswith("_hparams_")]
    group = HParamsPluginData.FromString(start).session_start_info.group_name
    assert group == folder(outputs["logs"]).parent.name.replace("~", "/")
    assert titles["loss"] == "loss (nats per token)"
    assert titles["tokens_per_second"] == "tokens_per_second (tokens per second)"
    assert set(titles) == {
        *(set(REPORTED) - {"embeddings_only"}),
        "_hparams_/session_start_info",
        "validation_loss",
        "validation_perplexity",
        "validation_bits_per_byte",
        "config",
        "samples",
    }


def test_a_ruined_training_publishes_its_best_step_and_warns(train):
    # A few steps that learn, then a rate so high that all is lost again.
    outputs = train(steps=20, learning_rate=1.5, warmup_steps=20, optimizer="adam", validate_every=1, save_every=20)
    published = outputs["checkpoint"]
    losses = {line["step"]: line["validation_loss"] for line in metrics(outputs) if "validation_loss" in line}
    best = min(losses, key=losses.get)
    assert losses[20] > losses[0] > losses[best]
    assert (published["step"], published["last_step"], published["regressed"]) == (str(best), "20", "true")
    assert float(published["validation_loss"]) == losses[best]
    assert float(published["last_validation_loss"]) == losses[20]
    assert f"was {losses[0]:.4f} at step 0 and is {losses[20]:.4f} at step 20" in published["warnings"]
    assert f"the checkpoint is of step {best}" in published["warnings"]
    assert json.loads((folder(published) / "last/state.json").read_text())["step"] == 20
    assert not (folder(published) / "optimizer.safetensors").exists()


def test_a_training_that_brings_nothing_publishes_the_weights_it_began_with(train, tmp_path):
    architecture = small_architecture(n_layer=1)
    weights = random_weights(architecture)
    made = make_checkpoint(tmp_path / "parent", architecture, weights)
    for name, start in {"scratch": None, "fine-tuned": {"checkpoint_uri": made.uri}}.items():
        config = {"learning_rate": 5.0, "optimizer": "adam", "validate_every": 6}
        published = train(start, job_id=name, **config)["checkpoint"]
        assert (published["step"], published["last_step"], published["regressed"]) == ("0", "6", "true")
        assert published["validation_loss"] == published["initial_validation_loss"]
        assert "the training brought nothing" in published["warnings"]
        if start:
            kept = load_file(folder(published) / "weights.safetensors")
            assert all(np.array_equal(kept[key], value) for key, value in weights.items())
        # To end even worse than that is not to bring more.
        again = train({"continue_uri": published["uri"]}, job_id=f"{name}-on", steps=2, batch_size=0)["checkpoint"]
        assert (again["step"], again["last_step"]) == ("0", "8")
        assert again["validation_loss"] == published["validation_loss"]


def test_averages_are_published_and_the_training_continues_from_the_weights(train, tmp_path):
    config = {
        "ema_decay": 0.9,
        "reshuffle_documents": True,
        "validate_every": 3,
        "save_every": 3,
        "learning_rate": 0.02,
    }
    outputs = train(**config)
    published = folder(outputs["checkpoint"])
    assert outputs["checkpoint"]["step"] == "6"
    slots = load_file(published / "last/optimizer.safetensors")
    weights, last = (load_file(path / "weights.safetensors") for path in (published, published / "last"))
    for name, value in weights.items():
        np.testing.assert_array_equal(value, slots[f"average/{name}"], err_msg=name)
    assert any(not np.array_equal(value, last[name]) for name, value in weights.items())
    assert not (published / "optimizer.safetensors").exists()

    # As if it had been killed before the last checkpoint.
    shutil.rmtree(tmp_path / "artifacts/job/.work/checkpoints/step-000000006")
    assert train(**config)["checkpoint"]["digest"] == outputs["checkpoint"]["digest"]
    other = train({"continue_uri": outputs["checkpoint"]["uri"]}, job_id="other", batch_size=0, ema_decay=0.5)
    assert "config.ema_decay: is 0.9 in the training to continue" in other["error"]["message"]


def test_a_training_that_improves_warns_of_nothing(train):
    checkpoint = train()["checkpoint"]
    assert checkpoint["regressed"] == "false"
    assert "warnings" not in checkpoint


def test_training_starts_from_a_checkpoint_with_a_new_optimizer(train, tmp_path):
    architecture = small_architecture(n_layer=1)
    made = make_checkpoint(tmp_path / "parent", architecture, random_weights(architecture))
    start = {"checkpoint_uri": made.uri}
    outputs = train(start, only_train_transformer_layers=True, learning_rate=0.001)
    before, after = (load_file(path / "weights.safetensors") for path in (made.folder, folder(outputs["checkpoint"])))
    for name in before:
        assert np.array_equal(before[name], after[name]) != name.startswith("h."), name
    state = json.loads((folder(outputs["checkpoint"]) / "state.json").read_text())
    assert state["source"] == made.digest
    slots = load_file(folder(outputs["checkpoint"]) / "optimizer.safetensors")
    assert all("/h." in name or name.startswith("guard/") for name in slots)
    parents = json.loads((folder(outputs["checkpoint"]) / "manifest.json").read_text())["parents"]
    assert [parent["digest"] for parent in parents][1] == made.digest


def test_a_finished_training_that_is_run_again_gives_the_same(train):
    """A retry after the work was done, but before its service received of it."""
    first, again = train(), train()
    assert again["checkpoint"]["digest"] == first["checkpoint"]["digest"]
    assert len(metrics(again)) == len(metrics(first))


def test_a_default_that_an_upgrade_changes_does_not_change_a_training_that_has_begun(train):
    refused = train(settings={"device_memory_bytes": 1})["error"]
    assert "the device has 0.00 GiB" in refused["message"]
    begun, new = (train(job_id=job_id, new_default=("beta1", 0.5))["checkpoint"] for job_id in ("job", "new"))
    configs = [json.loads((folder(outputs) / "state.json").read_text())["config"] for outputs in (begun, new)]
    assert [config["beta1"] for config in configs] == [0.9, 0.5]
    weights = [
        load_file(folder(outputs) / "weights.safetensors") for outputs in (begun, train(job_id="old")["checkpoint"])
    ]
    assert all(value.tobytes() == weights[1][name].tobytes() for name, value in weights[0].items())


def test_divergence_ends_the_job_and_keeps_the_last_good_checkpoint(train, tmp_path):
    wild = {"optimizer": "sgd", "learning_rate": 1e30, "clip_norm": 0.0, "warmup_steps": 30, "validate_every": 30}
    error = train(steps=30, save_every=1, **wild)["error"]
    assert error["type"] == "FailedPrecondition"
    assert "the training diverged at step" in error["message"]
    assert "lower learning_rate" in error["message"]
    kept = sorted((tmp_path / "artifacts/job/.work/checkpoints").glob("step-*"))
    assert kept
    assert f"the checkpoint of step {int(kept[-1].name[5:])} is kept" in error["message"]
    assert all(np.isfinite(value).all() for value in load_file(kept[-1] / "weights.safetensors").values())


def test_a_context_longer_than_the_data_says_what_fits(train, tmp_path):
    make_dataset(tmp_path / "short", train=3000, validation=12)
    error = train(dataset="short")["error"]
    assert error["type"] == "InvalidRequest"
    assert "config.context_length: the validation split of the dataset has 12 tokens" in error["message"]
    assert "at most 11 fits" in error["message"]
    assert train(dataset="short", job_id="other", context_length=11).keys() == {"checkpoint", "logs", "samples"}


def test_an_empty_validation_split_is_refused(train, tmp_path):
    make_dataset(tmp_path / "empty", validation=0)
    assert "the validation split of the dataset has 0 tokens" in train(dataset="empty")["error"]["message"]


def test_a_checkpoint_with_another_vocabulary_is_refused(train, tmp_path):
    architecture = small_architecture(n_layer=1)
    other = type(architecture)(layers=architecture.layers, vocabulary_size=300, end_token_id=299)
    made = make_checkpoint(tmp_path / "parent", other, random_weights(other))
    error = train({"checkpoint_uri": made.uri})["error"]
    assert error["type"] == "FailedPrecondition"
    assert f"vocabulary of {VOCABULARY_SIZE} tokens and the checkpoint one of 300" in error["message"]


def test_a_checkpoint_with_a_shorter_context_is_refused(train, tmp_path):
    architecture = small_architecture(n_layer=1, n_ctx=8)
    made = make_checkpoint(tmp_path / "parent", architecture, random_weights(architecture))
    error = train({"checkpoint_uri": made.uri}, context_length=9)["error"]
    assert error["message"] == "config.context_length: must be at most 8, the positions that the model has"


def test_a_dataset_that_lost_a_shard_is_refused(train, tmp_path):
    (tmp_path / "dataset/train-00001.npy").unlink()
    assert train()["error"]["type"] == "DataLoss"


def test_a_dataset_that_changed_under_a_training_is_refused(train, tmp_path):
    assert "error" not in train()
    shutil.rmtree(tmp_path / "dataset")
    make_dataset(tmp_path / "dataset", train=2000)
    error = train()["error"]
    assert error["type"] == "FailedPrecondition"
    assert "dataset was recreated" in error["message"]


@pytest.mark.parametrize("uri", ["file:///etc", "../dataset", "s3://elsewhere/d"])
def test_data_outside_the_roots_is_refused(train, tmp_path, uri, jax_process):
    request = pb.TrainModelRequest(dataset_uri=uri, model=pb.ModelConfig(**MODEL), config=pb.TrainConfig(steps=1))
    result = jax_process(computations.run_job, *TRAIN, request.SerializeToString(), str(tmp_path), "job")
    assert result["error"]["type"] == "InvalidRequest"
    assert result["error"]["message"].startswith("dataset_uri: ")
