"""Trainings that cannot work with their inputs are refused when they are asked for, and nothing else is."""

import pytest
from trainer_support.data import make_checkpoint, make_dataset, random_weights, small_architecture

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.artifacts import ArtifactStore
from gpt2_trainer.admission import admission_problems

MODEL = {"model": pb.ModelConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=16)}


@pytest.fixture
def ask(tmp_path):
    make_dataset(tmp_path / "dataset", train=3000, validation=30)
    store = ArtifactStore(tmp_path.as_uri(), [tmp_path.as_uri()], tmp_path / "scratch")

    def run(start=None, dataset="dataset", memory=1 << 34, **config):
        uri = dataset if "://" in dataset else (tmp_path / dataset).as_uri()
        values = {"steps": 10, **config}
        request = pb.TrainModelRequest(dataset_uri=uri, config=pb.TrainConfig(**values), **(start or MODEL))
        return admission_problems(request, store, memory)

    return run


def test_what_works_is_let_through(ask):
    assert ask() == []
    assert ask(steps=0, epochs=2) == []


def test_a_context_longer_than_the_data(ask):
    big = {"model": pb.ModelConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=64)}
    [(field, text)] = ask(big)
    assert field == "config.context_length"
    assert "the validation split of the dataset has 30 tokens" in text
    assert "at most 29 fits" in text
    assert ask(big, context_length=29) == []


def test_a_context_longer_than_the_checkpoints(ask, tmp_path):
    architecture = small_architecture(n_layer=1, n_ctx=8)
    make_checkpoint(tmp_path / "parent", architecture, random_weights(architecture))
    start = {"checkpoint_uri": (tmp_path / "parent").as_uri()}
    assert ask(start) == []
    assert ask(start, context_length=9)[0][0] == "config.context_length"
    assert ask(start, batch_tokens=20)[0][0] == "config.batch_tokens"


def test_memory_that_is_not_there(ask):
    [(field, text)] = ask(memory=1 << 28)
    assert field == "config"
    assert "the device has 0.25 GiB" in text


def test_warm_up_longer_than_the_epochs(ask):
    assert ask(steps=0, epochs=1, warmup_steps=24) == []
    [(field, text)] = ask(steps=0, epochs=1, warmup_steps=25)
    assert (field, text) == ("config.warmup_steps", "must be at most the 24 steps of the training")


def test_what_is_no_dataset_is_refused_and_what_is_not_there_yet_is_left_to_the_job(ask, tmp_path):
    architecture = small_architecture(n_layer=1)
    make_checkpoint(tmp_path / "parent", architecture, random_weights(architecture))
    assert ask(dataset="parent")[0][0] == "dataset_uri"
    assert ask(dataset="file:///etc")[0][0] == "dataset_uri"
    assert ask(dataset="not-yet") == []
    (tmp_path / "dataset/dataset.json").write_text("{")
    assert ask() == []
