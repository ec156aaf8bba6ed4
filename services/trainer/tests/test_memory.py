"""What a training needs of memory is known beforehand, about, and what cannot fit is refused with what would."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from trainer_support.data import make_dataset

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_trainer.configuration.architecture import PRESETS, Architecture
from gpt2_trainer.configuration.training import LoraConfig, ResolvedTrainingConfig
from gpt2_trainer.memory import MALLOC_ENVIRONMENT, DeviceMemory, device_memory, estimate_memory, memory_problems

GIB = 1 << 30
OPTIONS = ResolvedTrainingConfig(
    steps=100, batch_size=8, context_length=1024, learning_rate=1e-3, validate_every=10, save_every=10
)


def architecture(name):
    return Architecture(layers=PRESETS[name], vocabulary_size=50257, end_token_id=50256)


def total(name, on_host=False, **changes):
    return estimate_memory(architecture(name), replace(OPTIONS, **changes), on_host=on_host).total / GIB


def test_parts_are_those_of_the_formulas():
    estimate = estimate_memory(architecture("124M"), OPTIONS, on_host=False)
    assert estimate.weights == pytest.approx(4 * 124.5e6, rel=0.01)
    assert estimate.gradients == estimate.weights
    assert estimate.optimizer == 2 * estimate.weights
    # More logits than may exist at one time: half of them, and the sum of the embedding's gradient.
    assert estimate.logits == 4 * 1024 * 50304 * 12 + 4 * 50304 * 768


def test_each_saving_saves():
    whole = total("124M")
    assert total("124M", gradient_accumulation_steps=8) < whole / 3
    assert total("124M", gradient_checkpointing=True) < whole
    assert total("124M", precision="bfloat16") < whole
    big = {"gradient_accumulation_steps": 8, "gradient_checkpointing": True}
    assert total("1558M", optimizer="adafactor", **big) < 0.7 * total("1558M", **big)
    assert total("1558M", lora=LoraConfig(), **big) < 0.7 * total("1558M", **big)
    assert total("1558M", optimizer="sgd", **big) < total("1558M", optimizer="sgd", momentum=0.9, **big)


def test_1558m_with_adam_needs_more_than_24_gib_at_least():
    """Weights, gradients and two moments alone."""
    assert total("1558M", gradient_accumulation_steps=8, precision="bfloat16", gradient_checkpointing=True) > 24


def text(name, size, **changes):
    memory = DeviceMemory(size=int(size * GIB), is_host=False)
    found = memory_problems(architecture(name), replace(OPTIONS, **changes), memory)
    return found[0][1] if found else ""


def test_what_fits_is_said():
    assert text("124M", 80) == ""
    refused = text("124M", 16)
    assert "the device has 16.00 GiB" in refused
    assert "micro_batch_size 4" in refused or "micro_batch_size 2" in refused
    for number in (4, 2):
        if f"micro_batch_size {number}" in refused:
            assert text("124M", 16, gradient_accumulation_steps=8 // number) == ""
    assert "micro_batch_size 1 with" in text("1558M", 30, batch_size=64)
    assert "no setting fits: choose a smaller model, or give the trainer more memory" in text("1558M", 2)


def test_the_setting_counts_and_otherwise_the_machine():
    assert device_memory(12345).size == 12345
    assert GIB < device_memory(0).size < 1 << 50


@pytest.mark.parametrize("start", [{"model_size": "1558M"}, {"model_size": "124M"}])
def test_a_job_that_cannot_fit_is_refused(train, start):
    error = train(start, settings={"device_memory_bytes": GIB}, context_length=256)["error"]
    assert error["type"] == "InvalidRequest"
    assert error["message"].startswith("config: the training needs about ")
    assert "the device has 1.00 GiB" in error["message"]


@pytest.mark.process
def test_the_estimate_is_near_what_a_training_takes(tmp_path):
    """Weights, moments and activations that outweigh all else, in a separate process, on JAX."""
    make_dataset(tmp_path / "dataset", train=4000, validation=600)
    model = pb.ModelConfig(n_layer=4, n_head=8, n_embd=640, n_ctx=256)
    config = pb.TrainConfig(steps=2, batch_size=8, sample_length=1, validation_sequences=1)
    request = pb.TrainModelRequest(dataset_uri=(tmp_path / "dataset").as_uri(), model=model, config=config)
    done = subprocess.run(
        [sys.executable, "-m", "trainer_support.peak", request.SerializeToString().hex(), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), **MALLOC_ENVIRONMENT},
        capture_output=True,
        text=True,
        check=True,
    )
    peak, expected = map(int, done.stdout.split()[-2:])
    assert 0.5 < peak / expected < 2, f"{peak:,} {expected:,}"
