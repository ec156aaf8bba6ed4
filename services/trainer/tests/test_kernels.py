"""Each kernel that is chosen computes the reference's results, and its gradients are those of differentiation."""

import numpy as np
import pytest
from trainer_support import computations

pytestmark = pytest.mark.process

TOLERANCES = {"float32": {"rtol": 1e-4, "atol": 1e-5}, "bfloat16": {"rtol": 0.02, "atol": 0.03}}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def causal(time, keys):
    return np.arange(keys) <= np.arange(time)[:, None] + keys - time


def attention(time, keys, mask):
    values = normal(2, 3, time, 8), normal(2, 3, keys, 8, seed=1), normal(2, 3, keys, 8, seed=2)
    return values, (2, 3, time, 8), {"arguments": (mask,), "constants": {"scale": 8**-0.5}}


def loss(vocabulary_size, rows=24):
    values = normal(6, 16), normal(rows, 16, seed=1)
    return values, (), {"arguments": (np.array([3, 3, 0, 7, 19, 1], np.int32), vocabulary_size)}


# Arguments that gradients are taken by, the result's shape, and other arguments.
CASES = {
    "embed": [((normal(7, 5),), (2, 3, 5), {"arguments": (np.array([[0, 6, 6], [1, 6, 2]], np.int32),)})],
    "matmul": [((normal(4, 5, 24), normal(24, columns, seed=1)), (4, 5, columns), {}) for columns in (7, 1024)],
    "layer_norm": [
        (
            (3 * normal(*shape) + 2, normal(shape[-1], seed=1), normal(shape[-1], seed=2)),
            shape,
            {"constants": options},
        )
        for shape, options in (
            ((3, 5, 24), {}),
            ((4, 6, 24), {}),
            ((7, 96), {}),
            ((1, 1, 1, 2), {}),
            ((7, 96), {"epsilon": 0.5}),
        )
    ],
    "gelu": [
        ((3 * normal(4, 5, 16), normal(16, seed=1)), (4, 5, 16), {"constants": {"exact": exact}})
        for exact in (False, True)
    ],
    "attention": [attention(6, 6, causal(6, 6)), attention(1, 9, causal(1, 9))],
    "causal_attention": [attention(6, 6, causal(6, 6))],
    "logits": [((normal(2, 5, 16), normal(24, 16, seed=1)), (2, 5, 24), {"arguments": (size,)}) for size in (24, 20)],
    # The third one's logits have rows of whole pages.
    "mean_loss": [loss(24), loss(20), loss(1000, 1024)],
}


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    ("name", "number"),
    [
        pytest.param(name, number, marks=pytest.mark.exhaustive if number else ())
        for name in CASES
        for number in range(len(CASES[name]))
    ],
)
def test_kernels_and_their_gradients_are_those_of_the_reference(backend, name, number, dtype):
    values, shape, options = CASES[name][number]
    upstream = np.asarray(normal(*shape, seed=3))
    # On TensorFlow, also those of training on CPUs.
    for compiled in (True, False) if backend.name == "tensorflow" else (True,):
        arguments = name, values, upstream, dtype, compiled, options
        ours, plain = backend(computations.kernel_and_reference, *arguments)
        for one, other in zip(ours, plain, strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other, **TOLERANCES[dtype])


@pytest.mark.parametrize("max_logits", [1 << 28, 3 * 24])
def test_token_losses_are_those_of_the_reference(backend, max_logits):
    hidden, embedding = normal(6, 16), normal(24, 16, seed=1)
    targets = (hidden @ embedding.T)[:, :20].argmax(axis=-1).astype(np.int32)
    targets[::2] = 3
    (losses, likeliest), plain = backend(
        computations.token_losses_both_ways, hidden, embedding, targets, 20, max_logits
    )
    np.testing.assert_allclose(losses, plain[0], rtol=1e-5)
    np.testing.assert_array_equal(likeliest, plain[1])
    assert likeliest.any()
    assert not likeliest.all()


def test_every_kernel_is_compared(backend):
    assert set(backend(computations.kernel_names)) == {*CASES, "token_losses"}


@pytest.mark.parametrize("shape", [(5,), (4, 768), (2, 3, 50_304)])
def test_sums_of_rows_are_exact_float32(backend, shape):
    values = np.abs(normal(*shape))
    sums = backend(computations.summed_rows, values)
    assert sums.shape == (*shape[:-1], 1)
    np.testing.assert_allclose(sums, values.sum(axis=-1, keepdims=True, dtype=np.float64), rtol=2e-6)
