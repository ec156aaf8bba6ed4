"""What went wrong in older GPT-2 training tools, each as a test; others of these are beside what they concern.

A failed restore that trains from scratch: test_checkpoint_manager.py. Checkpoints without limit:
test_checkpoint_manager.py. Options refused by a crash: test_validation.py. Pages taken for a model: test_download.py.
Text that never ends and contexts that overrun: test_generation.py and test_formats.py. Resumes that lose the
optimizer or the place: test_resume.py.
"""

import json
import logging

import numpy as np
from safetensors.numpy import load_file
from trainer_support.jobs import folder, metrics

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.configuration.resolution import resolve_training_config
from gpt2_trainer.model.weights import initial_weights
from gpt2_trainer.training.metrics_log import log_report


def test_the_exported_weights_are_the_trained_ones(train):
    """They were saved before the update, and never after the last."""
    outputs = train(steps=1, save_every=1, seed=3)
    checkpoint = folder(outputs["checkpoint"])
    content = json.loads((checkpoint / "config.json").read_text())
    untrained = initial_weights(Architecture.from_json(content), 3)
    trained = load_file(checkpoint / "weights.safetensors")
    assert all(not np.array_equal(trained[name], value) for name, value in untrained.items())


def test_as_many_updates_are_made_as_were_asked_for(train):
    """One too few were made."""
    outputs = train(steps=5, log_every=1)
    assert [line["step"] for line in metrics(outputs) if "loss" in line] == [1, 2, 3, 4, 5]
    running = folder(outputs["checkpoint"]).parent / ".work/checkpoints/step-000000005"
    assert load_file(running / "optimizer.safetensors")["guard/updates"] == 5


def test_options_of_one_training_do_not_reach_the_next():
    """Options were merged into the defaults that all trainings share, and then not used."""
    model = pb.ModelConfig(n_layer=1, n_head=1, n_embd=8, n_ctx=8)

    def options(**config):
        request = pb.TrainModelRequest(dataset_uri="file:///d", model=model, config=pb.TrainConfig(**config))
        return resolve_training_config(request, 8, 1000)

    before = options(steps=5)
    options(steps=5, batch_size=64, noise=0.5, optimizer="sgd")
    assert options(steps=5) == before


def test_noise_changes_what_a_training_sees(train):
    clean, noisy = (metrics(train(job_id=f"noise-{noise}", noise=noise)) for noise in (0.0, 0.9))
    assert clean[0] == noisy[0]
    assert clean[-2]["loss"] < noisy[-2]["loss"]


def test_accumulation_goes_with_memory_saving_and_with_every_optimizer(train):
    """Together they ended in a TypeError; memory was saved in one layer alone."""
    for optimizer in ("adam", "adafactor"):
        config = {"gradient_accumulation_steps": 2, "gradient_checkpointing": True, "optimizer": optimizer, "steps": 2}
        assert "error" not in train(job_id=optimizer, **config)


def test_a_report_says_its_metrics(caplog):
    """Lines were logged with arguments and no place for them."""
    metrics = {"loss": 3.25, "learning_rate": 6e-4, "gradient_norm": 0.5, "tokens_per_second": 1234.0}
    metrics |= {"mfu": 0.5, "seconds_left": 3723.0, "skipped_steps": 2.0}
    with caplog.at_level(logging.INFO):
        log_report(10, 200, metrics)
    assert caplog.messages == [
        "step 10 of 200: loss 3.2500, learning rate 0.0006, gradient norm 0.500, 1234 tokens/s, MFU 50.0%, "
        "2 skipped updates, 1:02:03 to go"
    ]
