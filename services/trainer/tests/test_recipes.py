"""Recipes give defaults, what a request sets wins over them, and the chosen values are those of every attempt."""

import json
import logging

import pytest
from google.protobuf import json_format

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.errors import InvalidRequest
from gpt2_contracts.dataset import DatasetDescription, SplitSize
from gpt2_trainer.admission import admit_training
from gpt2_trainer.configuration.resolution import inherit, new_layer_sizes
from gpt2_trainer.configuration.training import ResolvedTrainingConfig
from gpt2_trainer.validation import train_problems

TOKENS = 6401  # 200 sequences of 32: 25 steps of 8 are an epoch
MODEL = pb.ModelConfig(n_layer=2, n_head=2, n_embd=8, n_ctx=32)


def train_request(start=None, **config):
    config = pb.TrainConfig(**{"steps": 200, "recipe": "small_data", **config})
    return pb.TrainModelRequest(dataset_uri="file:///d", config=config, **(start or {"model": MODEL}))


def admitted(request, tokens=TOKENS):
    assert train_problems(request) == []
    return _admit(request, tokens)


def _admit(request, tokens=TOKENS):
    dataset = DatasetDescription(
        vocabulary_size=9,
        end_token_id=0,
        tokenizer_digest="",
        train=SplitSize(tokens=tokens, documents=1),
        validation=SplitSize(tokens=100, documents=1),
    )
    layers = new_layer_sizes(request) or new_layer_sizes(train_request())
    return admit_training(request, layers, dataset)


def differences(left: ResolvedTrainingConfig, right: ResolvedTrainingConfig) -> set[str]:
    pairs = left.to_json(), right.to_json()
    return {name for name in pairs[0] if pairs[0][name] != pairs[1][name]}


def test_without_a_recipe_nothing_changes():
    assert differences(admitted(train_request()), admitted(train_request(recipe=""))) > {"recipe", "optimizer"}
    assert admitted(train_request(recipe="")).optimizer == "adamw"


def test_small_data_regularises_and_scratch_does_not():
    small, scratch = admitted(train_request()), admitted(train_request(recipe="scratch"))
    assert (small.recipe, scratch.recipe) == ("small_data", "scratch")
    assert (small.optimizer, small.schedule) == (scratch.optimizer, scratch.schedule) == ("muon", "wsd")
    assert small.cooldown_steps == scratch.cooldown_steps == 80
    assert small.weight_decay > scratch.weight_decay
    assert small.ema_decay
    assert small.reshuffle_documents
    assert small.early_stopping_patience
    assert not (scratch.ema_decay)
    assert not (scratch.reshuffle_documents)
    assert not (scratch.early_stopping_patience)


@pytest.mark.parametrize("recipe", ["auto", "small_data"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.5),
        ("weight_decay", 0.0),
        ("ema_decay", 0.0),
        ("reshuffle_documents", False),
        ("schedule", "cosine"),
        ("cooldown_steps", 7),
    ],
)
def test_what_a_request_sets_wins_also_where_it_is_zero(recipe, name, value):
    chosen = admitted(train_request(recipe=recipe, **{name: value}))
    assert chosen.recipe == "small_data"
    assert getattr(chosen, name) == value


def test_early_stopping_can_be_turned_off():
    assert admitted(train_request(early_stopping_patience=0)).early_stopping_patience is None


def test_dropout_is_what_the_request_asks_for():
    assert not admitted(train_request()).dropout_rates
    rates = admitted(train_request(dropout=0.1, attention_dropout=0.0)).dropout_rates
    assert (rates.attention, rates.residual) == (0.0, 0.1)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "adafactor"])
def test_another_optimizer_keeps_its_own_rate_and_decay(optimizer):
    chosen = admitted(train_request(optimizer=optimizer))
    plain = admitted(train_request(recipe="", optimizer=optimizer))
    assert chosen.ema_decay
    for name in ("optimizer", "learning_rate", "weight_decay", "beta2", "momentum"):
        assert getattr(chosen, name) == getattr(plain, name)


@pytest.mark.parametrize(
    ("config", "recipe"),
    [
        ({"steps": 25}, "scratch"),
        ({"steps": 101}, "scratch"),
        ({"steps": 104}, "small_data"),
        ({"steps": 0, "epochs": 4.0}, "scratch"),
        ({"steps": 0, "epochs": 4.5}, "small_data"),
        ({"steps": 25, "batch_size": 64}, "small_data"),
    ],
)
def test_auto_chooses_by_epochs_and_says_why(caplog, config, recipe):
    with caplog.at_level(logging.INFO):
        chosen = admitted(train_request(recipe="auto", **config))
    assert chosen.recipe == recipe
    assert differences(chosen, admitted(train_request(recipe=recipe, **config))) == set()
    [text] = [record.getMessage() for record in caplog.records if "recipe" in record.getMessage()]
    assert recipe in text
    assert "6,401 tokens" in text
    assert "tokens per parameter" in text


def test_auto_has_no_recipe_for_weights_from_a_checkpoint():
    start = {"checkpoint_uri": "file:///c"}
    chosen, plain = (admitted(train_request(start, recipe=recipe)) for recipe in ("auto", ""))
    assert chosen == plain
    assert chosen.optimizer == "adamw"


@pytest.mark.parametrize("start", [{"checkpoint_uri": "file:///c"}, {"continue_uri": "file:///c"}])
@pytest.mark.parametrize("recipe", ["scratch", "small_data"])
def test_recipes_are_for_new_models(start, recipe):
    [(field, text)] = train_problems(train_request(start, recipe=recipe))
    assert field == "config.recipe"
    assert repr(recipe) in text
    assert "leave it out" in text


@pytest.mark.parametrize("recipe", ["auto", "small_data"])
@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"optimizer": "adamw", "momentum": 0.5}, "config.momentum"),
        ({"schedule": "cosine", "cooldown_steps": 5}, "config.cooldown_steps"),
        ({"optimizer": "sgd", "weight_decay": 0.1}, "config.weight_decay"),
    ],
)
def test_options_fit_the_recipe_or_the_request_is_refused(recipe, config, field):
    request = train_request(recipe=recipe, **config)
    found = train_problems(request)
    if recipe == "auto":
        assert found == []
        with pytest.raises(InvalidRequest) as caught:
            _admit(request)
        found = caught.value.violations
    assert [name for name, _ in found] == [field]


def test_the_resolved_recipe_survives_json_and_is_not_applied_again():
    chosen = admitted(train_request(recipe="auto", learning_rate=0.5))
    assert ResolvedTrainingConfig.from_json(json.loads(json.dumps(chosen.to_json()))) == chosen
    inherited = inherit(pb.TrainConfig(steps=10), chosen)
    assert not inherited.recipe
    assert json_format.MessageToDict(inherited)["learningRate"] == 0.5


def test_a_training_from_before_recipes_has_none():
    content = admitted(train_request(recipe="")).to_json()
    del content["recipe"]
    assert ResolvedTrainingConfig.from_json(content).recipe is None
