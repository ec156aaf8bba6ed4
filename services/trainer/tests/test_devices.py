"""Several devices compute what one does: four that JAX makes of the machine's cores."""

from dataclasses import replace

import numpy as np
import pytest
from trainer_support import computations
from trainer_support.data import make_dataset, random_weights, small_architecture
from trainer_support.jobs import metrics

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_trainer.configuration.training import LoraConfig, ResolvedTrainingConfig
from gpt2_trainer.memory import estimate_memory
from gpt2_trainer.validation import backend_problems, size_problems

ARCHITECTURE = small_architecture(n_layer=2, n_ctx=16, n_head=3, n_embd=24)
OPTIONS = ResolvedTrainingConfig(
    steps=10,
    batch_size=8,
    context_length=16,
    optimizer="sgd",
    momentum=0.9,
    learning_rate=0.1,
    validate_every=10,
    save_every=10,
    devices=1,
)
TRAIN = ("gpt2_trainer.jobs.train", "train_model", "TrainModelRequest")


def batches():
    random = np.random.default_rng(5)
    return [tuple(random.integers(0, 300, (2, 8, 16), dtype=np.int32)) for _ in range(3)]


def trained(process, **changes):
    max_logits = changes.pop("max_logits", 1 << 28)
    options, weights = replace(OPTIONS, **changes), random_weights(ARCHITECTURE)
    return process(computations.train_steps, ARCHITECTURE, weights, options, batches(), max_logits=max_logits)


@pytest.mark.parametrize(
    "changes",
    [
        {"devices": 4},
        {"devices": 4, "model_devices": 2},
        *(
            pytest.param(changes, marks=pytest.mark.exhaustive)
            for changes in (
                {"devices": 2, "gradient_accumulation_steps": 2, "max_logits": 20_000},
                {"devices": 2, "model_devices": 2},
                {"devices": 4, "model_devices": 4, "optimizer": "adafactor", "learning_rate": 0.001},
                {"devices": 4, "model_devices": 2, "optimizer": "muon", "learning_rate": 0.001},
            )
        ),
    ],
)
def test_losses_and_weights_are_those_of_one_device(four_devices_process, changes):
    alone = {name: value for name, value in changes.items() if name in ("optimizer", "learning_rate")}
    weights, metrics = trained(four_devices_process, **alone)
    divided, divided_metrics = trained(four_devices_process, **changes)
    np.testing.assert_allclose(divided_metrics, metrics, rtol=2e-5)
    if not alone:
        for name, value in weights.items():
            np.testing.assert_allclose(divided[name], value, atol=1e-5, err_msg=name)


def test_a_model_is_divided_among_the_devices_that_share_it(four_devices_process):
    options = replace(OPTIONS, devices=4, model_devices=2, optimizer="adamw", momentum=0.0)
    layouts = four_devices_process(computations.step_layouts, ARCHITECTURE, random_weights(ARCHITECTURE), options)
    rows = ARCHITECTURE.padded_vocabulary_size
    for prefix in ("", "first_moment/"):
        assert layouts[f"{prefix}h.0.attn.c_attn.weight"] == (4, (24, 36))
        assert layouts[f"{prefix}h.1.mlp.c_proj.weight"] == (4, (48, 24))
        assert layouts[f"{prefix}h.1.mlp.c_fc.bias"] == (4, (48,))
        assert layouts[f"{prefix}wte.weight"] == (4, (rows // 2, 24))
        assert layouts[f"{prefix}wpe.weight"] == (4, (16, 24))


def run(process, folder, job_id, **changes):
    values = {"steps": 4, "batch_size": 4, "sample_length": 4, "validate_every": 2, "save_every": 2, **changes}
    config = pb.TrainConfig(log_every=1, **values)
    model = pb.ModelConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=16)
    request = pb.TrainModelRequest(dataset_uri=(folder / "dataset").as_uri(), model=model, config=config)
    return process(computations.run_job, *TRAIN, request.SerializeToString(), str(folder), job_id, keras_backend="jax")


def test_a_job_trains_on_the_devices_asked_for(four_devices_process, tmp_path):
    """By default on all of them; samples, validations and checkpoints are as ever."""
    make_dataset(tmp_path / "dataset")
    losses = {}
    for job_id, changes in (("one", {"devices": 1}), ("all", {}), ("shared", {"model_devices": 4})):
        outputs = run(four_devices_process, tmp_path, job_id, **changes)
        losses[job_id] = [line.get("loss", line.get("validation_loss")) for line in metrics(outputs)]
    assert len(losses["one"]) == 7
    for job_id in ("all", "shared"):
        np.testing.assert_allclose(losses[job_id], losses["one"], rtol=2e-5)
        assert losses[job_id] != losses["one"], "the same to the last bit: nothing was divided"


def test_more_devices_than_there_are_are_refused(four_devices_process, tmp_path):
    make_dataset(tmp_path / "dataset")
    error = run(four_devices_process, tmp_path, "many", batch_size=8, devices=8)["error"]
    assert error == {"type": "InvalidRequest", "message": "config.devices: 8 devices are asked for, and there are 4"}


@pytest.mark.parametrize(
    ("changes", "field", "text"),
    [
        ({"devices": 3}, "devices", "do not divide the 8 sequences at once"),
        ({"devices": 4, "model_devices": 3}, "model_devices", "must divide devices"),
    ],
)
def test_impossible_numbers_of_devices_are_named(changes, field, text):
    config = pb.TrainConfig(steps=OPTIONS.steps, batch_size=8, context_length=8, **changes)
    [(found, description)] = size_problems(config, None, None)
    assert found == f"config.{field}"
    assert text in description


def test_several_devices_are_refused_on_tensorflow():
    for changes in ({"devices": 2}, {"model_devices": 2}):
        request = pb.TrainModelRequest(config=pb.TrainConfig(**changes))
        [(field, text)] = backend_problems(request, "tensorflow")
        assert field == f"config.{next(iter(changes))}"
        assert "KERAS_BACKEND=jax" in text
        assert backend_problems(request, "jax") == []
    assert backend_problems(pb.TrainModelRequest(config=pb.TrainConfig(devices=1)), "tensorflow") == []


def test_each_device_needs_less_memory():
    def total(**changes):
        return estimate_memory(ARCHITECTURE, replace(OPTIONS, **changes), on_host=False)

    assert total(devices=4).activations == total().activations // 4
    assert total(devices=4).weights == total().weights
    assert total(devices=4, model_devices=4).weights == total().weights // 4
    assert total(devices=2, lora=LoraConfig()).logits == total(lora=LoraConfig()).logits // 2
    assert total(devices=2, num_nodes=2).activations == total().activations // 4
    assert total(num_nodes=2, model_devices=2).activations == total().activations
    on_hosts = [estimate_memory(ARCHITECTURE, replace(OPTIONS, num_nodes=nodes), on_host=True) for nodes in (1, 2)]
    assert on_hosts[1].activations == on_hosts[0].activations // 2
    assert on_hosts[1].copies == on_hosts[0].copies
