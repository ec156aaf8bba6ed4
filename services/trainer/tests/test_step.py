"""Updates are right: gradients, optimizers, clipping, accumulation, schedules; the same on every backend."""

from dataclasses import replace

import numpy as np
import pytest
from trainer_support import computations, reference
from trainer_support.data import VOCABULARY_SIZE, random_weights, small_architecture

from gpt2_trainer.configuration.training import ResolvedTrainingConfig, count_chunks
from gpt2_trainer.model.lora import is_hidden_matrix
from gpt2_trainer.model.weights import is_decayed, is_layer_weight

ARCHITECTURE = small_architecture(n_layer=1, n_ctx=8)
OPTIONS = ResolvedTrainingConfig(
    steps=10,
    batch_size=4,
    context_length=8,
    learning_rate=0.01,
    schedule="constant",
    clip_norm=None,
    validate_every=10,
    save_every=10,
)


def batches(count, rows=4):
    random = np.random.default_rng(5)
    for _ in range(count):
        tokens = random.integers(0, VOCABULARY_SIZE, (rows, 9), dtype=np.int32)
        # The same token again and again: gradients of one row of the embedding add up.
        tokens[:, ::2] = 7
        yield np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])


def run(backend, options, count=1, weights=None, **model):
    weights = random_weights(ARCHITECTURE) if weights is None else weights
    return backend(computations.train_steps, ARCHITECTURE, weights, options, list(batches(count)), **model)


def gradients_of(backend, weights, batch):
    """Gradients, read from one step of plain gradient descent at rate 1."""
    options = replace(OPTIONS, optimizer="sgd", learning_rate=1.0)
    updated, _ = backend(computations.train_steps, ARCHITECTURE, weights, options, [batch])
    return {name: weights[name] - updated[name] for name in weights}


def assert_same(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_allclose(first[name], second[name], err_msg=name, **tolerance)


def test_gradients_agree_with_differences_of_the_reference_loss(backend):
    weights, batch = random_weights(ARCHITECTURE), next(batches(1))
    gradients = gradients_of(backend, weights, batch)
    random = np.random.default_rng(0)
    for name, value in weights.items():
        direction = random.normal(size=value.shape)
        if name == "wte.weight":
            direction[7] *= 3
        sides = [
            reference.losses({**weights, name: value.astype(np.float64) + sign * 1e-4 * direction}, *batch, 1, 2).mean()
            for sign in (1, -1)
        ]
        slope = (sides[0] - sides[1]) / 2e-4
        assert float((gradients[name] * direction).sum()) == pytest.approx(slope, rel=2e-3, abs=2e-5), name


def test_loss_and_norm_are_those_of_the_reference(backend):
    weights, batch = random_weights(ARCHITECTURE), next(batches(1))
    gradients = gradients_of(backend, weights, batch)
    _, [(loss, norm, rate)] = run(backend, OPTIONS)
    assert loss == pytest.approx(reference.losses(weights, *batch, 1, 2).mean(), abs=1e-5)
    assert norm == pytest.approx(np.sqrt(sum((value**2).sum() for value in gradients.values())), rel=1e-4)
    assert rate == pytest.approx(0.01)


@pytest.mark.parametrize(("optimizer", "betas", "decay"), [("adamw", (0.9, 0.95), 0.3), ("adam", (0.9, 0.999), 0.0)])
def test_optimizers_agree_with_numpy(backend, optimizer, betas, decay):
    options = replace(OPTIONS, optimizer=optimizer, weight_decay=decay, beta2=betas[1], learning_rate=0.01)
    random = np.random.default_rng(0)
    weights = random_weights(ARCHITECTURE)
    gradients = [
        {name: random.normal(0, 0.1, value.shape).astype(np.float32) for name, value in weights.items()}
        for _ in range(4)
    ]
    expected, numpy_optimizer = weights, reference.AdamW(betas, decay, is_decayed)
    for gradient in gradients:
        expected = numpy_optimizer.update(expected, gradient, 0.01)
    updated = backend(computations.optimizer_updates, options, weights, gradients)
    assert_same(updated, expected, atol=1e-6)
    assert max(np.abs(updated[name] - value).max() for name, value in weights.items()) > 0.03


def test_a_training_moves_weights_as_its_optimizer_says(backend):
    """The first update of Adam moves each weight by the learning rate against its gradient's sign."""
    weights, batch = random_weights(ARCHITECTURE), next(batches(1))
    gradients = gradients_of(backend, weights, batch)
    updated, _ = run(backend, replace(OPTIONS, optimizer="adam", weight_decay=0.0))
    for name in ("wte.weight", "h.0.mlp.c_fc.weight", "ln_f.bias"):
        clear = np.abs(gradients[name]) > 1e-5
        moved = (weights[name] - updated[name])[clear]
        np.testing.assert_allclose(moved, 0.01 * np.sign(gradients[name][clear]), rtol=0.01, err_msg=name)


def test_a_training_with_muon_moves_weights_as_numpy_says(backend):
    """On TensorFlow's CPUs the matrices' products are computed outside of the compiled update."""
    weights, batch = random_weights(ARCHITECTURE), next(batches(1))
    optimizer = reference.Muon(0.95, (0.9, 0.95), 0.3, is_decayed, is_hidden_matrix)
    expected = optimizer.update(weights, gradients_of(backend, weights, batch), 0.01)
    updated, _ = run(backend, replace(OPTIONS, optimizer="muon", momentum=0.95, weight_decay=0.3))
    hidden = [name for name in weights if is_hidden_matrix(name)]
    assert len(hidden) == 4
    for name in hidden:
        np.testing.assert_allclose(updated[name], expected[name], atol=1e-4, err_msg=name)
        assert np.abs(updated[name] - weights[name]).max() > 2e-3, name


def test_accumulation_equals_one_large_batch(backend):
    options = replace(OPTIONS, optimizer="sgd", learning_rate=1.0)
    whole, metrics = run(backend, options, 2)
    parts, part_metrics = run(backend, replace(options, gradient_accumulation_steps=4), 2)
    assert_same(whole, parts, atol=1e-5)
    np.testing.assert_allclose(metrics, part_metrics, rtol=1e-4)


def test_rematerialisation_changes_nothing(backend):
    options = replace(OPTIONS, optimizer="sgd", learning_rate=1.0)
    kept, metrics = run(backend, options, 2)
    for accumulation in (1, 2):
        again, again_metrics = run(backend, replace(options, gradient_accumulation_steps=accumulation), 2, remat=True)
        assert_same(kept, again, atol=1e-6)
        np.testing.assert_allclose(metrics, again_metrics, rtol=1e-5)


def test_a_loss_in_chunks_is_the_same(backend):
    """The batch's 32 tokens at once, and four at a time."""
    options = replace(OPTIONS, optimizer="sgd", learning_rate=1.0)
    whole, metrics = run(backend, options, 2)
    few = ARCHITECTURE.padded_vocabulary_size * 4
    parts, part_metrics = run(backend, options, 2, max_logits=few)
    assert_same(whole, parts, atol=1e-6)
    np.testing.assert_allclose(metrics, part_metrics, rtol=1e-5)
    weights, (inputs, targets) = random_weights(ARCHITECTURE), next(batches(1))
    losses = backend(computations.validation_losses, ARCHITECTURE, weights, OPTIONS, inputs, targets, max_logits=few)
    np.testing.assert_allclose(losses, reference.losses(weights, inputs, targets, 1, 2), atol=1e-5)


def test_logits_of_a_batch_are_divided_into_the_fewest_chunks():
    assert count_chunks(4 * 256, 50304) == 1
    assert count_chunks(32 * 1024, 50304) == 8
    assert count_chunks(13, 128, 128) == 13


def test_bfloat16_trains_weights_in_float32(backend):
    _, metrics = run(backend, OPTIONS, 2)
    rough, rough_metrics = run(backend, replace(OPTIONS, precision="bfloat16"), 2)
    assert {value.dtype for value in rough.values()} == {np.dtype(np.float32)}
    assert 0 < abs(rough_metrics[1][0] - metrics[1][0]) < 0.05


def test_clipping_scales_the_gradient(backend):
    gradients = {"a": np.array([3.0], np.float32), "b": np.array([0.0, 4.0], np.float32)}
    scaled, norm = backend(computations.clipped, gradients, 1.0)
    assert norm == pytest.approx(5.0)
    np.testing.assert_allclose(scaled["a"], [0.6], rtol=1e-6)
    np.testing.assert_allclose(scaled["b"], [0.0, 0.8], rtol=1e-6)
    for limit in (5.5, None):
        kept, _ = backend(computations.clipped, gradients, limit)
        np.testing.assert_array_equal(kept["b"], gradients["b"])


def test_only_layers_are_trained_when_asked(backend):
    before = random_weights(ARCHITECTURE)
    after, _ = run(backend, replace(OPTIONS, only_train_transformer_layers=True), 2)
    for name, value in before.items():
        assert np.array_equal(after[name], value) != is_layer_weight(name), name


def test_validation_changes_nothing_and_agrees_with_the_reference(backend):
    weights, (inputs, targets) = random_weights(ARCHITECTURE), next(batches(1))
    losses = backend(computations.validation_losses, ARCHITECTURE, weights, OPTIONS, inputs, targets)
    np.testing.assert_allclose(losses, reference.losses(weights, inputs, targets, 1, 2), atol=1e-5)


def test_averages_follow_the_weights_and_are_what_is_validated(backend):
    weights, given = random_weights(ARCHITECTURE), list(batches(3))
    options = replace(OPTIONS, ema_decay=0.25, learning_rate=0.05)
    steps = backend(computations.averaged_steps, ARCHITECTURE, weights, options, given)
    averages = weights
    for number, (trained, slots, losses) in enumerate(steps, start=1):
        decay = min(0.25, (1 + number) / (10 + number))
        averages = {name: decay * averages[name] + (1 - decay) * trained[name] for name in weights}
        for name, value in averages.items():
            np.testing.assert_allclose(slots[f"average/{name}"], value, atol=1e-6, err_msg=name)
        inputs, targets = given[number - 1]
        np.testing.assert_allclose(losses, reference.losses(averages, inputs, targets, 1, 2), atol=1e-4)
        assert np.abs(losses - reference.losses(trained, inputs, targets, 1, 2)).max() > 1e-3


def test_schedules(tensorflow_process):
    def rates(**changes):
        options = replace(OPTIONS, steps=101, learning_rate=1.0, warmup_steps=1, **changes)
        return tensorflow_process(computations.learning_rates, options, range(101))

    linear = rates(schedule="linear", final_learning_rate_fraction=0.2)
    np.testing.assert_allclose(linear, np.linspace(1, 0.2, 101), rtol=1e-5)
    cosine = rates(schedule="cosine", final_learning_rate_fraction=0.2)
    np.testing.assert_allclose(cosine, 0.6 + 0.4 * np.cos(np.linspace(0, np.pi, 101)), rtol=1e-4)
    assert rates(schedule="constant") == [1.0] * 101


@pytest.mark.parametrize("first_step", [0, 500])
def test_wsd_stays_at_the_peak_until_its_cooldown(tensorflow_process, first_step):
    def rates(**changes):
        options = replace(
            OPTIONS,
            steps=first_step + 100,
            first_step=first_step,
            learning_rate=2.0,
            warmup_steps=4,
            schedule="wsd",
            cooldown_steps=20,
            **changes,
        )
        return tensorflow_process(computations.learning_rates, options, range(first_step, first_step + 100))

    over = np.arange(1, 21) / 20
    for cooldown, part in {"linear": over, "1-sqrt": np.sqrt(over)}.items():
        found = rates(cooldown=cooldown, final_learning_rate_fraction=0.1)
        np.testing.assert_allclose(found[:4], [0.5, 1.0, 1.5, 2.0], rtol=1e-6)
        np.testing.assert_allclose(found[4:80], 2.0)
        np.testing.assert_allclose(found[80:], 2.0 * (1 - 0.9 * part), rtol=1e-4)
    assert rates(final_learning_rate_fraction=0.0)[-1] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("first_step", [0, 500])
def test_weight_decay_is_constant_or_falls_to_zero(tensorflow_process, first_step):
    def decays(**changes):
        options = replace(OPTIONS, steps=first_step + 100, first_step=first_step, weight_decay=0.8, **changes)
        return tensorflow_process(computations.weight_decays, options, range(first_step, first_step + 101))

    assert decays() == [0.8] * 101
    np.testing.assert_allclose(decays(weight_decay_schedule="linear"), np.linspace(0.8, 0, 101), rtol=1e-6, atol=1e-9)


def test_warm_up_rises_in_a_straight_line(tensorflow_process):
    options = replace(OPTIONS, steps=20, learning_rate=2.0, warmup_steps=4, schedule="linear")
    rates = tensorflow_process(computations.learning_rates, options, range(20))
    np.testing.assert_allclose(rates[:4], [0.5, 1.0, 1.5, 2.0], rtol=1e-6)
    assert rates[4] < 2.0
    assert rates[-1] == pytest.approx(0.2)


def test_a_single_step_has_the_highest_rate(tensorflow_process):
    for warmup_steps in (0, 1):
        options = replace(OPTIONS, steps=1, schedule="cosine", warmup_steps=warmup_steps)
        assert tensorflow_process(computations.learning_rates, options, [0]) == [pytest.approx(0.01)]
