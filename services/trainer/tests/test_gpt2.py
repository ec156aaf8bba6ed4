"""The model, as it is defined and with the chosen kernels, agrees with a plain NumPy GPT-2 on every backend."""

import math

import numpy as np
import pytest
from trainer_support import computations, reference
from trainer_support.data import VOCABULARY_SIZE, random_weights, small_architecture

from gpt2_trainer.configuration.architecture import PRESETS, Architecture, LayerSizes
from gpt2_trainer.model.weights import count_parameters, initial_weights, is_decayed, weight_shapes


def token_ids(shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY_SIZE, shape, dtype=np.int32)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("padded", "remat"), [(True, True), (True, False), (False, False)])
def test_logits_agree_with_the_reference(backend, padded, remat, fast):
    architecture = small_architecture(n_layer=3, n_head=4)
    weights, tokens = random_weights(architecture), token_ids((2, 16))
    ours = backend(computations.model_logits, architecture, weights, tokens, padded, fast, remat=remat)
    expected = reference.logits(weights, tokens, 3, 4)
    np.testing.assert_allclose(ours[..., :VOCABULARY_SIZE], expected, atol=1e-4)
    # What is padding can never be drawn.
    assert (ours[..., VOCABULARY_SIZE:] < -1e8).all()
    assert ours.shape[-1] == (384 if padded else VOCABULARY_SIZE)


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_is_near_float32(backend, fast):
    architecture = small_architecture()
    weights, tokens = random_weights(architecture), token_ids((2, 16))
    exact = backend(computations.model_logits, architecture, weights, tokens, fast=fast)
    rough = backend(computations.model_logits, architecture, weights, tokens, fast=fast, compute_dtype="bfloat16")
    assert rough.dtype == np.float32
    difference = np.abs(rough - exact)[..., :VOCABULARY_SIZE].max()
    assert 1e-4 < difference < 0.1


def test_a_token_does_not_see_later_ones(backend):
    architecture = small_architecture()
    weights, tokens = random_weights(architecture), token_ids((1, 16))
    changed = tokens.copy()
    changed[0, 9] = (changed[0, 9] + 1) % VOCABULARY_SIZE
    before = backend(computations.model_logits, architecture, weights, tokens)
    after = backend(computations.model_logits, architecture, weights, changed)
    np.testing.assert_array_equal(before[0, :9], after[0, :9])
    assert not np.array_equal(before[0, 9], after[0, 9])


def test_loss_of_a_new_model_is_that_of_guessing():
    architecture = small_architecture(n_layer=4, n_embd=64)
    tokens = token_ids((4, 17))
    loss = reference.losses(initial_weights(architecture, 0), tokens[:, :-1], tokens[:, 1:], 4, 2).mean()
    assert abs(loss - math.log(VOCABULARY_SIZE)) < 0.3


def test_initial_weights_are_those_of_openai_and_the_paper():
    weights = initial_weights(small_architecture(n_layer=8, n_embd=128, n_ctx=512), seed=3)
    deviation = {name: float(value.std()) for name, value in weights.items()}
    assert deviation["wte.weight"] == pytest.approx(0.02, rel=0.03)
    assert deviation["wpe.weight"] == pytest.approx(0.01, rel=0.03)
    assert deviation["h.5.attn.c_attn.weight"] == pytest.approx(0.02, rel=0.03)
    assert deviation["h.5.attn.c_proj.weight"] == pytest.approx(0.02 / 4, rel=0.03)
    assert deviation["h.5.mlp.c_proj.weight"] == pytest.approx(0.02 / 4, rel=0.03)
    assert (weights["h.0.ln_1.weight"] == 1).all()
    assert not any(value.any() for name, value in weights.items() if name.endswith(".bias"))
    assert not np.array_equal(weights["h.0.mlp.c_fc.weight"], weights["h.1.mlp.c_fc.weight"])
    assert not np.array_equal(
        weights["wte.weight"], initial_weights(small_architecture(n_embd=128), seed=4)["wte.weight"]
    )


@pytest.mark.parametrize(
    ("name", "parameters"), [("124M", 124439808), ("355M", 354823168), ("774M", 774030080), ("1558M", 1557611200)]
)
def test_presets_have_openais_numbers_of_parameters(name, parameters):
    architecture = Architecture(layers=PRESETS[name], vocabulary_size=50257, end_token_id=50256)
    assert count_parameters(architecture) == parameters
    assert architecture.padded_vocabulary_size == 50304


@pytest.mark.parametrize(("size", "rows"), [(1, 128), (8192, 8192), (32_000, 32_000), (32_001, 32_128)])
def test_the_vocabulary_is_padded_to_whole_tiles(size, rows):
    architecture = Architecture(layers=PRESETS["124M"], vocabulary_size=size, end_token_id=0)
    assert architecture.padded_vocabulary_size == rows


def test_decay_is_for_matrices_only():
    decayed = {name for name in weight_shapes(small_architecture(n_layer=1)) if is_decayed(name)}
    matrices = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert decayed == {"wte.weight", *(f"h.0.{matrix}.weight" for matrix in matrices)}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_layer": 0}, "n_layer must be 1 to 4,096"),
        ({"n_head": 3}, "n_head must divide n_embd"),
        ({"n_ctx": -1}, "n_ctx must be 1 to 1,048,576"),
    ],
)
def test_impossible_sizes_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        small_architecture(**sizes)


def test_end_token_outside_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="end_token_id must be in the vocabulary, 0 to 9"):
        Architecture(layers=LayerSizes(n_layer=1, n_head=1, n_embd=2, n_ctx=2), vocabulary_size=10, end_token_id=10)
