"""Low-rank adaptation: what is trained, what is frozen, and that the outcome is a checkpoint like any other."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file
from trainer_support import computations
from trainer_support.data import VOCABULARY_SIZE, make_checkpoint, random_weights, small_architecture
from trainer_support.jobs import folder

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_trainer.configuration.training import LoraConfig, ResolvedTrainingConfig
from gpt2_trainer.formats.checkpoint import read_checkpoint
from gpt2_trainer.formats.peft import read_adapters
from gpt2_trainer.model.lora import adapted_weights, initial_adapters, is_adapter, merge_adapters

ARCHITECTURE = small_architecture(n_layer=1)
LORA = LoraConfig(rank=3, alpha=6.0, targets=("attn.c_attn", "mlp.c_proj"))
OPTIONS = ResolvedTrainingConfig(
    steps=10,
    batch_size=2,
    context_length=16,
    optimizer="sgd",
    schedule="constant",
    learning_rate=1.0,
    clip_norm=None,
    validate_every=10,
    save_every=10,
)


def test_adapters_have_the_gradients_of_the_chain_rule(backend):
    weights = random_weights(ARCHITECTURE)
    adapters = initial_adapters(ARCHITECTURE, LORA, seed=4)
    random = np.random.default_rng(1)
    adapters = {name: random.normal(0, 0.1, value.shape).astype(np.float32) for name, value in adapters.items()}
    tokens = random.integers(0, VOCABULARY_SIZE, (2, 17), dtype=np.int32)
    batches = [(tokens[:, :-1].copy(), tokens[:, 1:].copy())]
    merged = merge_adapters(weights, adapters, LORA)
    full, metrics = backend(computations.train_steps, ARCHITECTURE, merged, OPTIONS, batches)
    options = replace(OPTIONS, lora=LORA)
    trained, lora_metrics = backend(computations.train_steps, ARCHITECTURE, weights | adapters, options, batches)
    assert lora_metrics[0][0] == pytest.approx(metrics[0][0], rel=1e-6)
    for name, value in weights.items():
        np.testing.assert_array_equal(trained[name], value, err_msg=name)
    for name in adapted_weights(ARCHITECTURE, LORA):
        gradient = merged[name] - full[name]
        a, b = adapters[f"lora_a/{name}"], adapters[f"lora_b/{name}"]
        np.testing.assert_allclose(a - trained[f"lora_a/{name}"], 2.0 * gradient @ b.T, atol=1e-5)
        np.testing.assert_allclose(b - trained[f"lora_b/{name}"], 2.0 * a.T @ gradient, atol=1e-5)


def test_adapters_change_nothing_at_first_and_depend_on_the_seed():
    weights = random_weights(ARCHITECTURE)
    adapters = initial_adapters(ARCHITECTURE, LoraConfig(), seed=1)
    assert len(adapters) == 8
    merged = merge_adapters(weights, adapters, LoraConfig())
    assert all(np.array_equal(merged[name], value) for name, value in weights.items())
    name = "lora_a/h.0.attn.c_attn.weight"
    assert adapters[name].std() > 0.05
    assert not np.array_equal(adapters[name], initial_adapters(ARCHITECTURE, LoraConfig(), seed=2)[name])


def test_a_job_publishes_merged_weights_and_the_adapter(train, tmp_path):
    base = random_weights(ARCHITECTURE)
    made = make_checkpoint(tmp_path / "parent", ARCHITECTURE, base)
    config = {"lora": pb.LoraConfig(rank=2, targets=["attn.c_attn", "mlp.c_fc"]), "validate_every": 3, "save_every": 3}
    outputs = train({"checkpoint_uri": made.uri}, **config)
    published = folder(outputs["checkpoint"])
    checkpoint = read_checkpoint(published, with_optimizer=False)
    lora = LoraConfig(rank=2, alpha=4.0, targets=("attn.c_attn", "mlp.c_fc"))
    assert set(adapted_weights(ARCHITECTURE, lora)) == {
        name for name, value in base.items() if not np.array_equal(checkpoint.weights[name], value)
    }
    adapters = read_adapters(published / "adapter")
    merged = merge_adapters(base, adapters, lora)
    for name, value in merged.items():
        np.testing.assert_array_equal(checkpoint.weights[name], value, err_msg=name)
    tensors = load_file(published / "adapter/adapter_model.safetensors")
    assert {name: value.shape for name, value in tensors.items()} == {
        "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": (2, 16),
        "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight": (48, 2),
        "base_model.model.transformer.h.0.mlp.c_fc.lora_A.weight": (2, 16),
        "base_model.model.transformer.h.0.mlp.c_fc.lora_B.weight": (64, 2),
    }
    assert json.loads((published / "adapter/adapter_config.json").read_text())["fan_in_fan_out"] is True

    running = tmp_path / "artifacts/job/.work/checkpoints"
    slots = load_file(running / "step-000000006/optimizer.safetensors")
    assert all(is_adapter(name.partition("/")[2]) or name.startswith("guard/") for name in slots)
    weights = load_file(running / "step-000000006/weights.safetensors")
    assert all(np.array_equal(weights[name], value) for name, value in base.items())

    # As if it had been killed before the last checkpoint.
    shutil.rmtree(running / "step-000000006")
    assert train({"checkpoint_uri": made.uri}, **config)["checkpoint"]["digest"] == outputs["checkpoint"]["digest"]

    # It is a checkpoint like any other: one can train on from it.
    again = train({"checkpoint_uri": outputs["checkpoint"]["uri"]}, job_id="again", steps=1, learning_rate=1e-9)
    after = read_checkpoint(folder(again["checkpoint"]), with_optimizer=False)
    assert after.adapters == {}
    np.testing.assert_allclose(after.weights["wte.weight"], base["wte.weight"], atol=1e-6)
