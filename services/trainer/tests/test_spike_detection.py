"""Updates that would do harm are left out and change nothing, and what was learned before is as it was."""

from dataclasses import replace

import numpy as np
import pytest
from trainer_support import computations
from trainer_support.data import VOCABULARY_SIZE, random_weights, small_architecture

from gpt2_trainer.configuration.training import ResolvedTrainingConfig

pytestmark = pytest.mark.process

ARCHITECTURE = small_architecture(n_layer=1, n_ctx=8)
OPTIONS = ResolvedTrainingConfig(
    steps=40,
    batch_size=2,
    context_length=8,
    learning_rate=0.001,
    schedule="constant",
    clip_norm=None,
    validate_every=40,
    save_every=40,
)


def decide(backend, options, count, loss, norm):
    return backend(computations.guard_decisions, options, [(3.0, 1.0)] * count, [(loss, norm)])[0]


@pytest.mark.parametrize(
    ("loss", "norm", "made"),
    [
        (3.0, 1.0, True),
        (float("nan"), 1.0, False),
        (3.0, float("nan"), False),
        (float("inf"), float("inf"), False),
        (3.0, 9.9, True),
        (3.0, 10.5, False),
        # ln 10 is 2.303.
        (5.2, 1.0, True),
        (5.4, 1.0, False),
    ],
)
def test_decisions(jax_process, loss, norm, made):
    assert decide(jax_process, OPTIONS, 30, loss, norm) == made


def test_the_first_updates_may_be_wild_but_not_nan(jax_process):
    assert decide(jax_process, OPTIONS, 5, 9.0, 1000.0)
    assert not decide(jax_process, OPTIONS, 5, float("nan"), 1.0)


def test_a_gradient_that_is_clipped_is_no_spike(jax_process):
    """Left out, it would come again: weights at which gradients are great stay as they are."""
    options = replace(OPTIONS, clip_norm=1.0)
    assert decide(jax_process, options, 30, 3.0, 1e6)
    assert not decide(jax_process, options, 30, 5.4, 1.0)
    assert not decide(jax_process, options, 30, 3.0, float("inf"))


def test_spikes_pass_when_nobody_minds_but_nan_does_not(jax_process):
    options = replace(OPTIONS, spike_factor=None)
    assert decide(jax_process, options, 30, 30.0, 1e6)
    assert not decide(jax_process, options, 30, float("inf"), 1.0)


def test_an_update_left_out_changes_weights_and_slots_in_no_bit(backend):
    weights = random_weights(ARCHITECTURE)
    random = np.random.default_rng(3)
    tokens = random.integers(0, 100, (2, 2, 9), dtype=np.int32)
    batches = [(rows[:, :-1].copy(), rows[:, 1:].copy()) for rows in tokens]
    # The last projection sees every row of the vocabulary, so that no loss is a number.
    weights["wte.weight"][200] = np.nan
    trained, metrics, slots, made = backend(
        computations.train_steps, ARCHITECTURE, weights, OPTIONS, batches, with_slots=True
    )
    assert made == [False, False]
    assert not np.isfinite(metrics[0][0])
    for name, value in weights.items():
        np.testing.assert_array_equal(trained[name], value, err_msg=name)
    assert all(not value.any() for value in slots[-1].values())


def test_a_spike_in_the_middle_leaves_no_trace(backend):
    """Training with a spike left out is, to the last bit, the state before it."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, 4, (26, 2, 9), dtype=np.int32)
    # Rows of tokens that were never seen, after the model is sure of a few.
    tokens[24] = random.integers(100, VOCABULARY_SIZE, (2, 9))
    batches = [(rows[:, :-1].copy(), rows[:, 1:].copy()) for rows in tokens]
    options = replace(OPTIONS, learning_rate=0.03, spike_factor=3.0)
    _, metrics, slots, made = backend(
        computations.train_steps, ARCHITECTURE, random_weights(ARCHITECTURE), options, batches, with_slots=True
    )
    assert made == [True] * 24 + [False, True]
    assert np.isfinite(metrics[24][0])
    for name, value in slots[23].items():
        np.testing.assert_array_equal(slots[24][name], value, err_msg=name)
    assert slots[25]["guard/updates"] == 25
    assert not np.array_equal(slots[25]["first_moment/wte.weight"], slots[24]["first_moment/wte.weight"])
