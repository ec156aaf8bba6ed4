"""Optimizers beside Adam agree with plain NumPy, on every backend."""

from dataclasses import replace

import numpy as np
import pytest
from trainer_support import computations, reference
from trainer_support.data import random_weights, small_architecture

from gpt2_trainer.configuration.training import LoraConfig, ResolvedTrainingConfig
from gpt2_trainer.memory import estimate_memory
from gpt2_trainer.model.lora import initial_adapters, is_hidden_matrix
from gpt2_trainer.model.weights import cut_vocabulary, is_decayed, pad_vocabulary

pytestmark = pytest.mark.process

ARCHITECTURE = small_architecture(n_layer=1, n_ctx=8)
OPTIONS = ResolvedTrainingConfig(
    steps=10, batch_size=4, context_length=8, learning_rate=0.01, validate_every=10, save_every=10
)


def random_gradients(weights, count):
    random = np.random.default_rng(0)
    return [
        {name: random.normal(0, 0.1, value.shape).astype(np.float32) for name, value in weights.items()}
        for _ in range(count)
    ]


def assert_agree(backend, options, numpy_optimizer, decays=()):
    weights = random_weights(ARCHITECTURE)
    gradients = random_gradients(weights, 4)
    expected = weights
    for number, gradient in enumerate(gradients):
        if decays:
            numpy_optimizer.decay = decays[number]
        expected = numpy_optimizer.update(expected, gradient, options.learning_rate)
    updated = backend(computations.optimizer_updates, options, weights, gradients)
    for name, value in weights.items():
        np.testing.assert_allclose(updated[name], expected[name], atol=2e-6, err_msg=name)
        assert not np.array_equal(value, updated[name])


@pytest.mark.parametrize("decay", [pytest.param(0.0, marks=pytest.mark.exhaustive), 0.3])
def test_adafactor_agrees_with_numpy(backend, decay):
    options = replace(OPTIONS, optimizer="adafactor", weight_decay=decay)
    assert_agree(backend, options, reference.Adafactor(decay, is_decayed))


@pytest.mark.parametrize(
    ("optimizer", "make"),
    [
        ("adafactor", lambda: reference.Adafactor(0.0, is_decayed)),
        ("muon", lambda: reference.Muon(0.95, (0.9, 0.95), 0.0, is_decayed, is_hidden_matrix)),
    ],
)
def test_weight_decay_that_falls_agrees_with_numpy(backend, optimizer, make):
    changes = {"momentum": 0.95} if optimizer == "muon" else {}
    options = replace(OPTIONS, optimizer=optimizer, weight_decay=0.5, weight_decay_schedule="linear", **changes)
    assert_agree(backend, options, make(), decays=[0.5, 0.45, 0.4, 0.35])


@pytest.mark.parametrize("momentum", [pytest.param(0.0, marks=pytest.mark.exhaustive), 0.9])
def test_sgd_agrees_with_numpy(backend, momentum):
    options = replace(OPTIONS, optimizer="sgd", momentum=momentum)
    assert_agree(backend, options, reference.Momentum(momentum))


@pytest.mark.parametrize("decay", [pytest.param(0.0, marks=pytest.mark.exhaustive), 0.3])
def test_muon_agrees_with_numpy(backend, decay):
    options = replace(OPTIONS, optimizer="muon", momentum=0.95, weight_decay=decay)
    assert_agree(backend, options, reference.Muon(0.95, (0.9, 0.95), decay, is_decayed, is_hidden_matrix))


def test_muon_orthogonalizes_as_optax_does(jax_process):
    weights = {name: value for name, value in random_weights(ARCHITECTURE).items() if is_hidden_matrix(name)}
    assert len(weights) == 4
    gradients = random_gradients(weights, 3)
    ours, theirs = jax_process(computations.muon_directions, weights, gradients, 0.95)
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], atol=2e-4, err_msg=name)
        assert np.abs(value).max() > 0.1


def test_muon_keeps_one_moment_of_hidden_matrices(jax_process):
    options = replace(OPTIONS, optimizer="muon", momentum=0.95)
    weights = random_weights(ARCHITECTURE)
    slots = jax_process(computations.first_slots, options, weights)
    for name, value in weights.items():
        second = (
            ("second_moment_columns", value.shape[1:]) if is_hidden_matrix(name) else ("second_moment", value.shape)
        )
        assert slots[f"first_moment/{name}"].shape == value.shape
        assert slots[f"{second[0]}/{name}"].shape == second[1]
    assert len(slots) == 2 * len(weights)
    estimate = estimate_memory(ARCHITECTURE, options, on_host=False)
    padded = pad_vocabulary(slots, ARCHITECTURE)
    assert estimate.optimizer == sum(value.nbytes for value in padded.values())


def test_muon_moves_adapters_that_are_zero_and_stays_finite(jax_process):
    lora = LoraConfig(rank=2, targets=("attn.c_attn",))
    adapters = initial_adapters(ARCHITECTURE, lora, 0)
    [a, b] = sorted(adapters)
    gradients = [{a: np.zeros_like(adapters[a]), b: value[b]} for value in random_gradients(adapters, 2)]
    options = replace(OPTIONS, optimizer="muon", momentum=0.95, lora=lora)
    updated = jax_process(computations.optimizer_updates, options, adapters, gradients)
    np.testing.assert_array_equal(updated[a], adapters[a])
    assert np.isfinite(updated[b]).all()
    # Each of queries, keys and values has an update of the same size, whatever its gradient's.
    sizes = [np.sqrt((part**2).mean()) for part in np.split(updated[b], 3, axis=1)]
    assert max(sizes) < 1.3 * min(sizes)


@pytest.mark.parametrize(
    "optimizer",
    ["adamw", "muon", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("adam", "sgd", "adafactor"))],
)
def test_a_skipped_update_leaves_everything_as_it_was(backend, optimizer):
    options = replace(OPTIONS, optimizer=optimizer, momentum=0.9 if optimizer == "sgd" else 0.0)
    weights = random_weights(ARCHITECTURE)
    before, after = backend(computations.after_a_skipped_update, options, weights, random_gradients(weights, 1)[0])
    assert before.keys() == after.keys() > weights.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
        assert np.isfinite(value).all()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_update_copies_no_slot(tensorflow_process, optimizer):
    """Copies of a model's two moments take longer than the update itself, and as much memory as the moments."""
    options = replace(OPTIONS, optimizer=optimizer, momentum=0.9 if optimizer == "sgd" else 0.0)
    assert tensorflow_process(computations.copies_of_an_update, options, (96, 64)) == 0


def test_betas_and_epsilon_are_used(jax_process):
    options = replace(OPTIONS, beta1=0.5, beta2=0.6, epsilon=0.01)
    assert_agree(jax_process, options, reference.AdamW((0.5, 0.6), 0.1, is_decayed, epsilon=0.01))


def test_adafactor_keeps_rows_and_columns_only(jax_process):
    weights = random_weights(ARCHITECTURE)
    slots = jax_process(computations.first_slots, replace(OPTIONS, optimizer="adafactor"), weights)
    for name, value in weights.items():
        of_weight = {
            slot.partition("/")[0]: tensor.shape for slot, tensor in slots.items() if slot.endswith(f"/{name}")
        }
        if value.ndim == 2:
            rows, columns = value.shape
            assert of_weight == {"second_moment_rows": (rows,), "second_moment_columns": (columns,)}
        else:
            assert of_weight == {"second_moment": value.shape}
    padded = pad_vocabulary(slots, ARCHITECTURE)
    assert padded["second_moment_rows/wte.weight"].shape == (ARCHITECTURE.padded_vocabulary_size,)
    assert padded["second_moment_columns/wte.weight"].shape == (16,)
    again = cut_vocabulary(padded, ARCHITECTURE)
    assert {name: value.shape for name, value in again.items()} == {name: value.shape for name, value in slots.items()}


def test_padding_of_the_vocabulary_changes_no_update_of_adafactor(jax_process):
    """Rows that are no tokens must not count where means are taken."""
    options = replace(OPTIONS, optimizer="adafactor")
    name = "wte.weight"
    weights = {name: random_weights(ARCHITECTURE)[name]}
    gradients = [{name: value[name]} for value in random_gradients(weights, 3)]
    exact = jax_process(computations.optimizer_updates, options, weights, gradients)
    elements = {name: weights[name].size}
    padded = jax_process(
        computations.optimizer_updates,
        options,
        pad_vocabulary(weights, ARCHITECTURE),
        [pad_vocabulary(gradient, ARCHITECTURE) for gradient in gradients],
        elements,
    )
    np.testing.assert_allclose(cut_vocabulary(padded, ARCHITECTURE)[name], exact[name], atol=1e-6)
    assert not padded[name][ARCHITECTURE.vocabulary_size :].any()
