"""Continuing a finished training: the same numbers as one training of all steps, and what it refuses."""

import json
from dataclasses import replace

import pytest
from safetensors.numpy import load_file
from trainer_support.data import make_checkpoint, make_dataset, random_weights, small_architecture
from trainer_support.jobs import folder, metrics

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.errors import InvalidRequest
from gpt2_contracts.dataset import DatasetDescription, SplitSize
from gpt2_trainer.admission import admit_training, require_continuable
from gpt2_trainer.configuration.architecture import LayerSizes
from gpt2_trainer.configuration.training import ResolvedTrainingConfig
from gpt2_trainer.formats.checkpoint import TrainingState
from gpt2_trainer.validation import train_problems

EARLIER = ResolvedTrainingConfig(
    steps=10,
    context_length=16,
    batch_size=4,
    learning_rate=0.01,
    schedule="constant",
    noise=0.1,
    validate_every=2,
    save_every=5,
    warmup_steps=3,
    early_stopping_patience=2,
    max_seconds=5.0,
    seed=7,
)
BEFORE = TrainingState(step=10, seed=7, config=EARLIER.to_json(), dataset_digest="d")


def request(**config):
    return pb.TrainModelRequest(dataset_uri="d", continue_uri="c", config=pb.TrainConfig(**{"steps": 4, **config}))


def continued_options(request, train_tokens=10_000, before=BEFORE):
    layers = LayerSizes(n_layer=1, n_head=1, n_embd=8, n_ctx=16)
    dataset = DatasetDescription(
        vocabulary_size=9,
        end_token_id=0,
        tokenizer_digest="",
        train=SplitSize(tokens=train_tokens, documents=1),
        validation=SplitSize(tokens=100, documents=1),
    )
    return admit_training(request, layers, dataset, before)


def continuing_problems(request, before, digest):
    try:
        require_continuable(request, before, digest)
    except InvalidRequest as error:
        return list(error.violations)
    return []


def last(outputs):
    """Folder of the last step in a checkpoint."""
    checkpoint = folder(outputs["checkpoint"])
    return checkpoint / "last" if (checkpoint / "last").is_dir() else checkpoint


def assert_same_tensors(first, second):
    for name in ("weights.safetensors", "optimizer.safetensors"):
        one, other = load_file(first / name), load_file(second / name)
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert value.tobytes() == other[key].tobytes(), (name, key)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, marks=pytest.mark.exhaustive),
        pytest.param({"lora": pb.LoraConfig(rank=2)}, marks=pytest.mark.exhaustive),
        {"learning_rate": 3.0},
    ],
    ids=str,
)
def test_steps_and_then_more_steps_equal_one_training_of_all_to_the_last_bit(train, options):
    """Also where the best step is not the last, and where additions are merged into the published weights."""
    same = {"schedule": "constant", "noise": 0.1, "seed": 3, "warmup_steps": 2, "validate_every": 3, **options}
    whole = train(steps=9, job_id="whole", **same)
    first = train(steps=6, job_id="first", **same)
    second = train(
        {"continue_uri": first["checkpoint"]["uri"]},
        job_id="second",
        **{"steps": 3, "batch_size": 0, "learning_rate": 0, "sample_length": 1, "warmup_steps": 0},
    )
    assert second["checkpoint"]["last_step"] == "9"
    assert_same_tensors(last(second), last(whole))
    best = [load_file(folder(outputs["checkpoint"]) / "weights.safetensors") for outputs in (second, whole)]
    assert second["checkpoint"]["step"] == whole["checkpoint"]["step"]
    assert all(value.tobytes() == best[1][name].tobytes() for name, value in best[0].items())
    losses = [
        [line.get("validation_loss") for line in metrics(outputs) if line["step"] == 9] for outputs in (second, whole)
    ]
    assert losses[0] == losses[1]
    assert {line["step"] for line in metrics(second)} == {9}


def test_a_continued_training_that_is_resumed_repeats_its_numbers_and_names_its_parent(train):
    first = train(schedule="constant")
    start = {"continue_uri": first["checkpoint"]["uri"]}
    once, again = (train(start, job_id="second", batch_size=0, learning_rate=0) for _ in range(2))
    assert once["checkpoint"]["digest"] == again["checkpoint"]["digest"]
    state = json.loads((last(once) / "state.json").read_text())
    assert (state["step"], state["source"]) == (12, first["checkpoint"]["digest"])
    parents = json.loads((folder(once["checkpoint"]) / "manifest.json").read_text())["parents"]
    assert [parent["digest"] for parent in parents][1] == first["checkpoint"]["digest"]


def test_weights_without_an_optimizer_and_another_dataset_are_not_continued(train, tmp_path):
    architecture = small_architecture(n_layer=1)
    made = make_checkpoint(tmp_path / "imported", architecture, random_weights(architecture))
    error = train({"continue_uri": made.uri})["error"]
    assert error["message"].startswith("continue_uri: is no checkpoint of a finished training")
    make_dataset(tmp_path / "other", train=2000)
    first = train()
    error = train({"continue_uri": first["checkpoint"]["uri"]}, dataset="other", job_id="second")["error"]
    assert error["type"] == "InvalidRequest"
    assert error["message"].startswith("dataset_uri: is another dataset than that of the training to continue")


def test_what_is_left_out_is_as_it_was_but_for_the_limits_of_one_training():
    options = continued_options(request(learning_rate=0.5))
    assert (options.steps, options.first_step, options.learning_rate) == (14, 10, 0.5)
    assert (options.seed, options.batch_size, options.schedule, options.noise) == (7, 4, "constant", 0.1)
    assert (options.warmup_steps, options.early_stopping_patience, options.max_seconds) == (0, None, None)
    by_epochs = continued_options(request(steps=0, epochs=2.0), 16 * 4 * 5 + 1)
    assert by_epochs.steps == 10 + 10


def test_fewer_steps_than_those_of_the_embeddings_alone_continue_a_training_that_had_them():
    state = replace(BEFORE, config=replace(EARLIER, embeddings_only_steps=8).to_json())
    assert continued_options(request(steps=4), before=state).embeddings_only_steps == 8


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"seed": 8}, "config.seed"),
        ({"batch_size": 8}, "config.batch_size"),
        ({"batch_tokens": 128}, "config.batch_tokens"),
        ({"context_length": 8}, "config.context_length"),
        ({"optimizer": "sgd"}, "config.optimizer"),
        ({"momentum": 0.9}, "config.momentum"),
        ({"lora": pb.LoraConfig(rank=2)}, "config.lora"),
        ({"only_train_transformer_layers": True}, "config.only_train_transformer_layers"),
        ({"embeddings_only_steps": 3}, "config.embeddings_only_steps"),
        ({"validation_sequences": 3}, "config.validation_sequences"),
    ],
)
def test_options_that_the_state_or_the_order_of_the_data_rests_on_cannot_change(config, field):
    assert train_problems(request(**config)) == []
    problems = dict(continuing_problems(request(**config), BEFORE, "d"))
    assert list(problems) == [field]
    assert "leave it out, or begin a new training" in problems[field]
    same = {"seed": 7, "batch_size": 4, "context_length": 16, "optimizer": "adamw"}
    assert continuing_problems(request(**same), BEFORE, "d") == []


@pytest.mark.parametrize(
    "config",
    [
        {"learning_rate": 1.0},
        {"weight_decay": 0.0},
        {"clip_norm": 0.0},
        {"precision": "bfloat16"},
        {"micro_batch_size": 2},
    ],
)
def test_other_options_can_change(config):
    [(name, value)] = config.items()
    assert continuing_problems(request(**config), BEFORE, "d") == []
    options = continued_options(request(**config))
    assert (
        (options.gradient_accumulation_steps == 2)
        if name == "micro_batch_size"
        else (getattr(options, name) == (None if name == "clip_norm" else value))
    )


def test_options_of_another_optimizer_than_the_one_continued_are_refused():
    sgd = TrainingState(step=10, config={**EARLIER.to_json(), "optimizer": "sgd"}, dataset_digest="d")
    [(field, text)] = continuing_problems(request(beta1=0.8), sgd, "d")
    assert field == "config.beta1"
    assert "not with 'sgd'" in text
    assert train_problems(request(momentum=0.5)) == []


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or greater, not 0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be 1 or greater"),
        ({"model_devices": 0}, "model_devices must be 1 or greater"),
        ({"context_length": "16"}, "context_length must be a whole number, not '16'"),
        ({"context_length": True}, "context_length must be a whole number, not True"),
        ({"learning_rate": float("nan")}, "learning_rate must be over 0, not nan"),
        ({"lora": {"rank": 0, "alpha": 1.0, "targets": []}}, "lora.rank must be 1 or greater, not 0"),
        ({"lora": {"rank": 1, "alpha": 1.0, "targets": ["wte"]}}, "lora.targets[0] must be one of attn.c_attn"),
        ({"lora": 7}, "lora must be a mapping, not 7"),
        ({"sampling": {"top_p": 0.0}}, "sampling.top_p must be over 0"),
        ({"sampling": None}, ""),
        ({"dropout_of_tomorrow": 1}, "dropout_of_tomorrow"),
    ],
)
def test_options_that_no_training_has_are_refused_in_the_state_to_continue(changes, part):
    before = TrainingState(step=10, config={**EARLIER.to_json(), **changes}, dataset_digest="d")
    [(field, text)] = continuing_problems(request(), before, "d")
    assert field == "continue_uri"
    assert "holds no options of a training" in text
    assert part in text
