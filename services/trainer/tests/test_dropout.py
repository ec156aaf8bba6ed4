"""Dropout drops what it says where GPT-2 of transformers has it, and draws the same masks again after a resume."""

from dataclasses import replace

import numpy as np
import pytest
from trainer_support import computations, reference
from trainer_support.data import VOCABULARY_SIZE, random_weights, small_architecture

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_rules import violations
from gpt2_trainer.configuration.resolution import resolve_training_config
from gpt2_trainer.configuration.training import DropoutRates, LoraConfig, ResolvedTrainingConfig
from gpt2_trainer.memory import estimate_memory
from gpt2_trainer.model.lora import initial_adapters

ARCHITECTURE = small_architecture(n_ctx=8)
SMALL = small_architecture(n_ctx=8, n_layer=1)
LORA = LoraConfig(rank=2)
RATES = {"attention_dropout": 0.3, "residual_dropout": 0.2, "embedding_dropout": 0.1}
OPTIONS = ResolvedTrainingConfig(
    steps=10,
    batch_size=4,
    context_length=8,
    learning_rate=0.5,
    optimizer="sgd",
    momentum=0.9,
    schedule="constant",
    clip_norm=None,
    validate_every=10,
    save_every=10,
    **RATES,
)


def batches(count):
    random = np.random.default_rng(5)
    return [tuple(random.integers(0, VOCABULARY_SIZE, (2, 4, 8), dtype=np.int32)) for _ in range(count)]


def run(backend, options, count=2, weights=None, **model):
    weights = random_weights(ARCHITECTURE) if weights is None else weights
    return backend(computations.train_steps, ARCHITECTURE, weights, options, batches(count), **model)


def masks(backend, shapes, step=0, part=0, **changes):
    return backend(computations.dropout_masks, replace(OPTIONS, **changes), step, part, shapes)


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_accumulation_steps": 2, "gradient_checkpointing": True},
        pytest.param({"precision": "bfloat16", "lora": LORA}, marks=pytest.mark.exhaustive),
        pytest.param({"optimizer": "muon", "momentum": 0.95}, marks=pytest.mark.exhaustive),
        pytest.param(
            {"optimizer": "muon", "momentum": 0.95, "precision": "bfloat16", "lora": LORA}, marks=pytest.mark.exhaustive
        ),
    ],
    ids=["accumulated-remat", "bfloat16-lora", "muon", "muon-bfloat16-lora"],
)
def test_a_resumed_training_with_dropout_repeats_every_bit(backend, changes):
    """`test_resume.py` kills a job with dropout."""
    options = replace(OPTIONS, **changes)
    adapters = initial_adapters(SMALL, LORA, seed=1) if options.lora else {}
    weights = random_weights(SMALL) | adapters
    whole, resumed = backend(computations.continued_training, SMALL, weights, options, batches(4), 2)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)
    assert any(not np.array_equal(whole[name], value) for name, value in weights.items())


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_fraction_dropped_is_the_rate_and_the_expectation_stays(backend, rate, precision):
    shape = (4, 8, 4000)
    rates = dict.fromkeys(RATES, rate)
    found = masks(backend, {("attention_output", 1): shape}, precision=precision, **rates)
    values = np.asarray(found["attention_output", 1], np.float64)
    count, tolerance = values.size, 5 * np.sqrt(rate * (1 - rate) / values.size)
    assert abs((values == 0).mean() - rate) < tolerance
    # Over every axis: neither a sequence nor a column is dropped more than others.
    for axis in range(3):
        fraction = (values == 0).mean(axis=axis)
        assert np.abs(fraction - rate).max() < 7 * np.sqrt(rate * (1 - rate) / shape[axis])
    kept = values[values != 0]
    assert kept.min() == kept.max() == pytest.approx(1 / (1 - rate), rel=1e-6 if precision == "float32" else 4e-3)
    assert abs(values.sum() / count - 1) < tolerance / (1 - rate) + (0 if precision == "float32" else 4e-3)


def test_masks_differ_by_seed_step_micro_batch_layer_and_place(backend):
    shape = (4, 8, 64)
    places = ("attention_output", "mlp_output", "attention", "embedding")
    shapes = {(place, layer): shape for place in places for layer in range(2)}
    rates = dict.fromkeys(RATES, 0.5)
    drawn = [
        mask
        for changes in ({}, {"seed": 1}, {"step": 1}, {"part": 1}, {"step": 1, "part": 1}, {"seed": 2**40})
        for mask in masks(backend, shapes, **changes, **rates).values()
    ]
    zeros = np.stack([mask.ravel() == 0 for mask in drawn]).astype(np.float64) - 0.5
    # Independent masks agree in half of their places.
    correlation = np.abs(zeros @ zeros.T) / (0.25 * shape[0] * shape[1] * shape[2]) - np.eye(len(drawn))
    assert correlation.max() < 0.15
    assert_equal(masks(backend, shapes, **rates), masks(backend, shapes, **rates))


def test_dropout_is_where_transformers_has_it_with_other_masks_in_each_micro_batch(backend):
    """The loss is that of the reference with the same masks, and rematerialisation sees these masks again."""
    weights, [(inputs, targets)] = random_weights(ARCHITECTURE), batches(1)
    hidden, weights_of_keys = (2, 8, 16), (2, 2, 8, 8)
    shapes = {("embedding", 0): hidden}
    for layer in range(2):
        shapes |= {
            ("attention", layer): weights_of_keys,
            ("attention_output", layer): hidden,
            ("mlp_output", layer): hidden,
        }
    expected, used = [], set()
    for part in range(2):
        drawn = masks(backend, shapes, part=part)

        def drop(values, place, layer, drawn=drawn):
            used.add((place, layer))
            return values * drawn[place, layer]

        rows = slice(2 * part, 2 * part + 2)
        expected.append(reference.losses(weights, inputs[rows], targets[rows], 2, 2, drop).mean())
    options = replace(OPTIONS, gradient_accumulation_steps=2)
    kept, [(loss, _, _)] = run(backend, options, 1)
    assert loss == pytest.approx(np.mean(expected), abs=1e-5)
    assert used == shapes.keys()
    assert loss != pytest.approx(reference.losses(weights, inputs, targets, 2, 2).mean(), abs=1e-4)

    again, [(same_loss, _, _)] = run(backend, options, 1, remat=True)
    assert same_loss == pytest.approx(loss, rel=1e-6)
    for name, value in kept.items():
        np.testing.assert_allclose(again[name], value, atol=1e-5, err_msg=name)


def test_without_dropout_the_program_draws_no_random_number(backend):
    [batch] = batches(1)
    weights, none = random_weights(SMALL), dict.fromkeys(RATES, 0.0)
    operations = [
        backend(computations.random_operations, SMALL, weights, replace(OPTIONS, **changes), batch)
        for changes in (none, {})
    ]
    assert operations[0] == 0
    assert operations[1] > 0


def test_validation_drops_nothing(backend):
    weights, [(inputs, targets)] = random_weights(SMALL), batches(1)
    losses = backend(computations.validation_losses, SMALL, weights, OPTIONS, inputs, targets)
    np.testing.assert_allclose(losses, reference.losses(weights, inputs, targets, 1, 2), atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"devices": 4}, marks=pytest.mark.exhaustive),
        {"devices": 2, "model_devices": 2, "gradient_accumulation_steps": 2},
    ],
)
def test_several_devices_draw_the_masks_of_one(four_devices_process, changes):
    alone = {name: value for name, value in changes.items() if name == "gradient_accumulation_steps"}
    weights, metrics = run(four_devices_process, replace(OPTIONS, devices=1, **alone))
    divided, divided_metrics = run(four_devices_process, replace(OPTIONS, **changes))
    np.testing.assert_allclose(divided_metrics, metrics, rtol=2e-5)
    for name, value in weights.items():
        np.testing.assert_allclose(divided[name], value, atol=1e-5, err_msg=name)


def request(**config):
    values = {"steps": 1, **config}
    return pb.TrainModelRequest(dataset_uri="file:///d", model_size="124M", config=pb.TrainConfig(**values))


def test_one_rate_is_for_all_places_and_each_can_be_its_own():
    def rates(**config):
        return resolve_training_config(request(**config), 8, 1000).dropout_rates

    assert not rates()
    assert rates(dropout=0.1) == DropoutRates(attention=0.1, residual=0.1, embedding=0.1)
    assert rates(dropout=0.1, attention_dropout=0.0) == DropoutRates(residual=0.1, embedding=0.1)
    assert rates(embedding_dropout=0.5) == DropoutRates(embedding=0.5)


@pytest.mark.parametrize("name", ["dropout", "attention_dropout", "residual_dropout", "embedding_dropout"])
@pytest.mark.parametrize("value", [1.0, -0.1, float("nan"), float("inf")])
def test_impossible_dropout_is_refused_by_its_name(name, value):
    [(field, text)] = violations(request(**{name: value}))
    assert field == f"config.{name}"
    assert text.startswith("must be 0 to under 1, not ")
    assert not violations(request(**{name: 0.999}))


def test_dropped_attention_weights_count_in_the_memory_estimate():
    def activations(**changes):
        none = dict.fromkeys(RATES, 0.0)
        return estimate_memory(ARCHITECTURE, replace(OPTIONS, **none | changes), on_host=True).activations

    assert activations() < activations(residual_dropout=0.1) < activations(attention_dropout=0.1)
