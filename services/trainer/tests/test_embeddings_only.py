"""The first steps can train the token embedding alone: nothing else moves, and what follows begins as if anew."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file
from trainer_support import computations
from trainer_support.data import VOCABULARY_SIZE, random_weights, small_architecture
from trainer_support.jobs import folder, metrics

from gpt2_trainer.configuration.architecture import Variant
from gpt2_trainer.configuration.training import ResolvedTrainingConfig

pytestmark = pytest.mark.process

ARCHITECTURE = small_architecture(n_layer=1, n_ctx=8)
WEIGHTS = random_weights(ARCHITECTURE)
OPTIONS = ResolvedTrainingConfig(
    steps=10,
    batch_size=4,
    context_length=8,
    learning_rate=0.01,
    schedule="constant",
    weight_decay=0.3,
    beta2=0.999,
    clip_norm=None,
    embeddings_only_steps=2,
    ema_decay=0.9,
    validate_every=10,
    save_every=10,
)
OPTIMIZERS = {
    "adamw": {},
    "muon": {"momentum": 0.95},
    "adafactor": {},
    "sgd": {"momentum": 0.9},
}
WTE, HEAD = "wte.weight", "lm_head.weight"


def batches(count):
    random = np.random.default_rng(5)
    for _ in range(count):
        tokens = random.integers(0, VOCABULARY_SIZE, (4, 9), dtype=np.int32)
        yield np.ascontiguousarray(tokens[:, :-1]), np.ascontiguousarray(tokens[:, 1:])


def steps_of(backend, options, count, architecture=ARCHITECTURE, weights=WEIGHTS):
    """Weights and slots after each step."""
    found = backend(computations.averaged_steps, architecture, weights, options, list(batches(count)))
    return [(trained, slots) for trained, slots, _ in found]


def one_step(backend, options):
    """Weights after a step, its gradient norm, and its slots."""
    options = replace(options, ema_decay=0.0)
    trained, [(_, norm, _)], [slots], _ = backend(
        computations.train_steps, ARCHITECTURE, WEIGHTS, options, list(batches(1)), with_slots=True
    )
    return trained, norm, slots


def options_of(optimizer):
    return replace(OPTIONS, optimizer=optimizer, **OPTIMIZERS[optimizer])


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("jax", "adamw"),
        *(pytest.param("jax", optimizer, marks=pytest.mark.exhaustive) for optimizer in ("muon", "adafactor", "sgd")),
        pytest.param("tensorflow", "adamw", marks=pytest.mark.exhaustive),
        ("tensorflow", "muon"),
    ],
)
def test_frozen_weights_their_slots_and_averages_keep_every_bit(name, optimizer, request):
    found = steps_of(request.getfixturevalue(f"{name}_process"), options_of(optimizer), 3)
    for trained, slots in found[:2]:
        for name, value in WEIGHTS.items():
            of_weight = {slot: tensor for slot, tensor in slots.items() if slot.endswith(f"/{name}")}
            assert len(of_weight) >= 2
            if name == WTE:
                assert not np.array_equal(trained[name], value)
                continue
            assert trained[name].tobytes() == value.tobytes(), name
            assert of_weight.pop(f"average/{name}").tobytes() == value.tobytes(), name
            assert not any(tensor.any() for tensor in of_weight.values()), name
    # From then on all are trained.
    trained, slots = found[2]
    for name, value in WEIGHTS.items():
        assert not np.array_equal(trained[name], value), name
        assert not np.array_equal(slots[f"average/{name}"], value), name


@pytest.mark.parametrize(
    "optimizer",
    ["adamw", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("muon", "adafactor", "sgd"))],
)
def test_weights_that_follow_begin_as_in_the_first_update_of_a_training(jax_process, optimizer):
    """Corrections of moments that start at 0 count a weight's updates: without, that of Adam is a third too small."""
    options, data = options_of(optimizer), list(batches(3))
    found = jax_process(computations.averaged_steps, ARCHITECTURE, WEIGHTS, options, data)
    (before, _, _), (after, _, _) = found[1:]
    fresh = replace(options, embeddings_only_steps=0)
    [(expected, _, _)] = jax_process(computations.averaged_steps, ARCHITECTURE, before, fresh, data[2:])
    for name in WEIGHTS:
        if name != WTE:
            np.testing.assert_allclose(after[name], expected[name], atol=2e-6, err_msg=name)


def test_the_norm_and_its_clipping_are_of_the_embedding_alone(jax_process):
    """And a spike is judged by the norm of all gradients, which does not jump when the other weights follow."""
    plain = replace(OPTIONS, optimizer="sgd", learning_rate=1.0, momentum=0.0, weight_decay=0.0)
    moved, norm, slots = one_step(jax_process, plain)
    own = np.linalg.norm(moved[WTE] - WEIGHTS[WTE])
    assert norm == pytest.approx(own, rel=1e-4)
    whole, whole_norm, whole_slots = one_step(jax_process, replace(plain, embeddings_only_steps=0))
    np.testing.assert_allclose(moved[WTE], whole[WTE], atol=1e-7)
    assert whole_norm > 1.5 * norm
    judged = [float(item["guard/gradient_norm"]) for item in (slots, whole_slots)]
    assert judged == pytest.approx([0.02 * whole_norm] * 2, rel=1e-4)
    clipped, norm, _ = one_step(jax_process, replace(plain, clip_norm=own / 4))
    assert norm == pytest.approx(own, rel=1e-4)
    assert np.linalg.norm(clipped[WTE] - WEIGHTS[WTE]) == pytest.approx(own / 4, rel=1e-4)


def test_an_untied_head_is_trained_from_the_start(jax_process):
    architecture = replace(ARCHITECTURE, variant=Variant(tie_word_embeddings=False))
    weights = random_weights(architecture)
    [(trained, _)] = steps_of(jax_process, OPTIONS, 1, architecture, weights)
    changed = {name for name, value in weights.items() if not np.array_equal(trained[name], value)}
    assert changed == {WTE, HEAD}


@pytest.mark.parametrize(
    ("name", "optimizer", "cut"),
    [
        ("jax", "muon", 1),
        pytest.param("jax", "muon", 3, marks=pytest.mark.exhaustive),
        pytest.param("jax", "adamw", 2, marks=pytest.mark.exhaustive),
        ("tensorflow", "adamw", 1),
    ],
)
def test_a_resume_on_either_side_of_the_boundary_is_exact(name, optimizer, cut, request):
    backend, options = request.getfixturevalue(f"{name}_process"), options_of(optimizer)
    whole, resumed = backend(computations.continued_training, ARCHITECTURE, WEIGHTS, options, list(batches(4)), cut)
    for name, value in whole.items():
        assert value.tobytes() == resumed[name].tobytes(), name


def test_a_job_says_what_it_trains_and_can_be_continued_across_the_boundary(train):
    same = {"schedule": "constant", "learning_rate": 0.01, "seed": 3, "log_every": 1, "validate_every": 9}
    whole = train(steps=6, job_id="whole", embeddings_only_steps=3, **same)
    reports = {line["step"]: line["embeddings_only"] for line in metrics(whole) if "embeddings_only" in line}
    assert reports == {1: 1.0, 2: 1.0, 3: 1.0, 4: 0.0, 5: 0.0, 6: 0.0}
    # Its three steps are the first three, so what follows trains all.
    first = train(steps=3, job_id="first", embeddings_only_steps=3, **same)
    inherited = {"steps": 3, "batch_size": 0, "learning_rate": 0, "warmup_steps": 0}
    second = train({"continue_uri": first["checkpoint"]["uri"]}, job_id="second", **inherited)
    last = [folder(item["checkpoint"]) for item in (whole, second)]
    last = [path / "last" if (path / "last").is_dir() else path for path in last]
    for name in ("weights.safetensors", "optimizer.safetensors"):
        tensors = [load_file(path / name) for path in last]
        assert tensors[0].keys() == tensors[1].keys()
        for key, value in tensors[0].items():
            assert value.tobytes() == tensors[1][key].tobytes(), (name, key)
    refused = train({"continue_uri": first["checkpoint"]["uri"]}, steps=3, job_id="other", embeddings_only_steps=4)
    assert "embeddings_only_steps" in refused["error"]["message"]
    assert "is 3 in the training to continue and cannot change" in refused["error"]["message"]
