"""Gradients written by hand, of what is between products of matrices above all, are those of differentiation."""

import numpy as np
import pytest
from trainer_support import computations


def agree(ours, plain):
    for one, other in zip(ours, plain, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(3, 5, 24), (7, 96), (1, 1, 1, 2)])
def test_layer_norm_and_its_gradients(backend, shape):
    values = 3 * normal(*shape) + 2, normal(shape[-1], seed=1), normal(shape[-1], seed=2)
    agree(*backend(computations.gradients_both_ways, "norm", values, normal(*shape, seed=3)))
    # A relative's epsilon, great enough to matter.
    agree(*backend(computations.gradients_both_ways, "norm", values, normal(*shape, seed=3), epsilon=0.5))


@pytest.mark.parametrize(("time", "keys"), [(6, 6), (1, 9)])
def test_attention_shares_and_their_gradients(backend, time, keys):
    scores = 8 * normal(2, 3, time, keys)
    mask = np.arange(keys) <= np.arange(time)[:, None] + keys - time
    options = {"factor": 12**-0.5, "mask": mask}
    arguments = "attention_shares", (scores,), normal(*scores.shape, seed=1)
    ours, plain = backend(computations.gradients_both_ways, *arguments, **options)
    agree(ours, plain)
    np.testing.assert_allclose(ours[0].sum(axis=-1), 1, rtol=1e-5)
    # What is not seen takes part in nothing.
    for result in ours:
        assert (result[..., ~mask] == 0).all()


@pytest.mark.parametrize("exact", [False, True])
def test_gelu_and_its_gradients(backend, exact):
    values = 3 * normal(4, 5, 16), normal(16, seed=1)
    agree(*backend(computations.gradients_both_ways, "gelu", values, normal(4, 5, 16, seed=2), exact=exact))


@pytest.mark.parametrize("columns", [7, 1024])
def test_a_linear_map_and_its_gradients(tensorflow_process, columns):
    values = normal(4, 5, 24), normal(24, columns, seed=1)
    agree(*tensorflow_process(computations.gradients_both_ways, "linear", values, normal(4, 5, columns, seed=2)))


@pytest.mark.parametrize("shape", [(5,), (4, 768), (2, 3, 50_304)])
def test_sums_of_rows_are_exact_float32(backend, shape):
    values = np.abs(normal(*shape))
    sums = backend(computations.summed_rows, values)
    assert sums.shape == (*shape[:-1], 1)
    np.testing.assert_allclose(sums, values.sum(axis=-1, keepdims=True, dtype=np.float64), rtol=2e-6)
