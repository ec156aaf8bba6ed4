"""Trainings on several nodes, whose processes are on this machine: they compute what one does, also when killed."""

import json
import os
import random
import signal
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from trainer_support import computations
from trainer_support.data import make_dataset
from trainer_support.jobs import folder as folder_of
from trainer_support.jobs import metrics
from trainer_support.pods import TIMEOUT_SECONDS, Nodes, recorded_batches

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.jobs.outcome import Failed
from gpt2_trainer.trainjobs.pod import EXIT_SUSPENDED

pytestmark = pytest.mark.process
STEPS, BATCH_SIZE, WINDOWS = 200, 8, 187
COUNTS = (2, pytest.param(4, marks=pytest.mark.exhaustive))
"""Numbers of nodes that are compared with one."""
KILLS = int(os.environ.get("GPT2_TEST_NODE_KILLS", "2"))
"""Kills of random nodes at random moments."""


def request(folder, **config):
    values = {
        "steps": STEPS,
        "batch_size": BATCH_SIZE,
        "gradient_accumulation_steps": 2,
        "learning_rate": 0.003,
        "noise": 0.1,
        "dropout": 0.1,
        "validate_every": 100,
        "save_every": 20,
        "log_every": 1,
        "sample_every": 100,
        "sample_length": 4,
        "seed": 7,
        **config,
    }
    return pb.TrainModelRequest(
        dataset_uri=(folder / "dataset").as_uri(),
        model=pb.ModelConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=16),
        config=pb.TrainConfig(**values),
    )


@dataclass
class Trained:
    """What is left of a training."""

    outputs: dict
    batches: list

    @property
    def losses(self):
        return [line["loss"] for line in metrics(self.outputs) if "loss" in line]

    @property
    def validation_losses(self):
        return [line["validation_loss"] for line in metrics(self.outputs) if "validation_loss" in line]

    @property
    def weights(self):
        return load_file(folder_of(self.outputs["checkpoint"]) / "weights.safetensors")

    def last_windows(self):
        """The windows of each step by row, each as it was last read: before a kill, not every node may have read it."""
        found = {}
        for step, windows in self.batches:
            found.setdefault(step, {}).update(windows)
        return found


@pytest.fixture(scope="module")
def compiled(compile_cache):
    return computations.cache_variables(str(compile_cache))


@pytest.fixture
def start(tmp_path, compiled):
    """Starts nodes on one training. What still runs in the end is killed."""
    make_dataset(tmp_path / "dataset")
    started = []

    def start(name, count, config=None, **variables):
        started.append(Nodes(tmp_path, name, count, request(tmp_path, **(config or {})), **compiled, **variables))
        return started[-1]

    yield start
    for nodes in started:
        nodes.kill()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, compiled):
    """The same training on a number of nodes: run when it is first asked for, and kept."""

    @cache
    def train_on(count):
        folder = tmp_path_factory.mktemp(f"nodes-{count}")
        make_dataset(folder / "dataset")
        outputs = Nodes(folder, "whole", count, request(folder, num_nodes=count), **compiled).finish()
        return Trained(outputs, recorded_batches(folder))

    return train_on


@pytest.mark.parametrize("count", COUNTS)
def test_losses_do_not_depend_on_the_number_of_nodes(uninterrupted, count):
    alone, together = uninterrupted(1), uninterrupted(count)
    assert [len(trained.losses) for trained in (alone, together)] == [STEPS] * 2
    print(f"step           1 node {count:>10} nodes")
    for step, row in enumerate(zip(alone.losses, together.losses, strict=True), start=1):
        print(f"{step:4} " + " ".join(f"{loss:16.7f}" for loss in row))
    np.testing.assert_allclose(together.losses, alone.losses, rtol=0, atol=1e-5)
    np.testing.assert_allclose(together.validation_losses, alone.validation_losses, rtol=0, atol=1e-5)
    samples = [(folder_of(item.outputs["samples"]) / "samples-0.txt").read_text() for item in (together, alone)]
    assert samples[0] == samples[1]
    assert alone.losses[-1] < alone.losses[0] - 0.5


@pytest.mark.parametrize("count", COUNTS)
def test_each_node_reads_its_part_of_each_batch_and_no_more(uninterrupted, count):
    expected = uninterrupted(1).last_windows()
    assert sorted(expected) == list(range(STEPS))
    batches = uninterrupted(count).batches
    assert len(batches) == STEPS * count
    assert {len(windows) for _, windows in batches} == {BATCH_SIZE // count}
    assert uninterrupted(count).last_windows() == expected
    order = [tuple(expected[step][row]) for step in range(STEPS) for row in range(BATCH_SIZE)]
    assert len(set(order)) == len(order), "a sequence comes twice in an epoch"
    assert {number for epoch, number in order if epoch == 0} == set(range(WINDOWS))


@pytest.mark.exhaustive  # test_trainjobs.py loses a node once
def test_nodes_that_are_killed_at_random_repeat_every_number(start, uninterrupted, tmp_path):
    """Each pod that ends is replaced alone, as an indexed Job does, while the others find out that it was lost."""
    seed = int(os.environ.get("GPT2_TEST_SEED", random.randrange(10**6)))
    print(f"GPT2_TEST_SEED={seed}")
    chance = random.Random(seed)
    nodes = start("killed", 2, {"num_nodes": 2})
    for number in range(KILLS):
        target = last_step(tmp_path) + chance.randrange(40)
        if number == 0 or (target < STEPS - 20 and chance.random() < 0.7):
            moment = f"after step {target}"
            ended = wait_while(nodes, lambda target=target: last_step(tmp_path) <= target)
        else:
            # Now and then in the start of a process, or while the others find out that one is lost.
            seconds = chance.uniform(0, 3)
            moment, until = f"after {seconds:.2f} s", time.monotonic() + seconds
            ended = wait_while(nodes, lambda until=until: time.monotonic() < until)
        if ended:
            break
        victim = chance.randrange(2)
        print(f"kill {number}: node {victim} {moment}, at step {last_step(tmp_path)}")
        nodes.pods[victim].process.kill()
        nodes.pods[victim].process.wait()
    wait_while(nodes, lambda: True)
    assert len(nodes.started) > 2
    whole, resumed = uninterrupted(2), Trained(whole_outputs(tmp_path), recorded_batches(tmp_path))
    assert resumed.losses == whole.losses
    assert resumed.validation_losses == whole.validation_losses
    assert resumed.last_windows() == whole.last_windows()
    for name in ("weights.safetensors", "optimizer.safetensors", "state.json"):
        contents = [(folder_of(item.outputs["checkpoint"]) / name).read_bytes() for item in (whole, resumed)]
        assert contents[0] == contents[1], name


def wait_while(nodes, condition):
    """Waits, and replaces pods that end, while a condition holds. Returns whether the training has ended."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while condition():
        if nodes.replace_ended():
            return True
        assert time.monotonic() < deadline, nodes.logs()
        time.sleep(0.01)
    return False


def last_step(folder):
    """The last step that a training has written metrics of."""
    log = folder / "artifacts/run~train/logs/metrics.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def whole_outputs(folder):
    job = folder / "artifacts" / "run~train"
    return {name: {"uri": (job / name).as_uri()} for name in ("checkpoint", "logs", "samples")}


@pytest.mark.parametrize(("count", "fewer"), [(2, 1), pytest.param(4, 2, marks=pytest.mark.exhaustive)])
def test_a_suspended_training_continues_on_fewer_nodes(start, uninterrupted, tmp_path, count, fewer):
    """The node that is asked to stop takes the others with it, at the same step, which is saved."""
    all_nodes = start("all", count, {"num_nodes": count})
    all_nodes.pods[0].wait_for_step(20)
    all_nodes.pods[-1].process.send_signal(signal.SIGTERM)
    assert all_nodes.wait() == [EXIT_SUSPENDED] * count, all_nodes.logs()
    saved = max(path.name for path in (tmp_path / "artifacts/run~train/.work/checkpoints").glob("step-*"))
    step = int(saved.removeprefix("step-"))
    assert 20 < step < STEPS
    fewer_nodes = start("fewer", fewer, {"num_nodes": count})
    resumed = Trained(fewer_nodes.finish(), recorded_batches(tmp_path))
    said = fewer_nodes.pods[0].log.read_text()
    assert f"{count} nodes are asked for, and the training runs on {fewer}" in said
    steps = [step for step, _ in resumed.batches]
    assert sorted(steps) == sorted([*list(range(step)) * count, *list(range(step, STEPS)) * fewer])
    assert resumed.last_windows() == uninterrupted(1).last_windows()
    np.testing.assert_allclose(resumed.losses, uninterrupted(1).losses, rtol=0, atol=1e-5)
    assert_close_weights(resumed.weights, uninterrupted(1).weights)


def assert_close_weights(found, expected):
    for name, value in expected.items():
        rows = np.full(value.shape, True)
        if name.endswith("attn.c_attn.bias"):
            # No loss depends on the biases of keys: their gradients are rounding errors, which Adam makes large.
            rows[len(value) // 3 : len(value) // 3 * 2] = False
        np.testing.assert_allclose(found[name][rows], value[rows], atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "config",
    [
        # One copy of the model on the four devices of both nodes, and one on each node.
        {"model_devices": 4, "gradient_accumulation_steps": 1, "ema_decay": 0.9},
        pytest.param({"model_devices": 2, "devices": 2, "lora": pb.LoraConfig(rank=2)}, marks=pytest.mark.exhaustive),
    ],
)
def test_models_sharded_over_nodes_and_adapters_train_as_on_one_device(start, train, config):
    config = {"steps": 6, "warmup_steps": -1, "validate_every": 3, "save_every": 3, "num_nodes": 2, **config}
    nodes = start("sharded", 2, config, XLA_FLAGS="--xla_force_host_platform_device_count=2")
    sharded = Trained(nodes.finish(), [])
    values = {field.name: value for field, value in request(Path("/"), **config).config.ListFields()}
    alone = Trained(train(**values | {"devices": 1, "model_devices": 1, "num_nodes": 1}), [])
    np.testing.assert_allclose(sharded.losses, alone.losses, rtol=0, atol=1e-5)
    np.testing.assert_allclose(sharded.validation_losses, alone.validation_losses, rtol=0, atol=1e-5)
    assert_close_weights(sharded.weights, alone.weights)


def test_nodes_without_a_common_folder_say_so(start, tmp_path):
    nodes = start("apart", 2, {"num_nodes": 2}, GPT2_ARTIFACT_ROOT=str(tmp_path / "elsewhere"))
    nodes.pods[0].process.kill()
    nodes.pods[0].process.wait()
    nodes.variables["GPT2_ARTIFACT_ROOT"] = str(tmp_path / "artifacts")
    assert not nodes.replace_ended()
    assert sorted(nodes.wait()) == [1, EXIT_SUSPENDED], nodes.logs()
    outcome = nodes.pods[1].messages()[-1]
    assert isinstance(outcome, Failed)
    assert "GPT2_ARTIFACT_ROOT: node 1 does not see" in outcome.error.message


def test_a_node_that_stays_alone_says_so(start):
    nodes = start("alone", 1, {"num_nodes": 2}, JAX_NUM_PROCESSES="2", GPT2_NODE_START_SECONDS="1")
    assert nodes.wait() == [1], nodes.logs()
    outcome = nodes.pods[0].messages()[-1]
    assert isinstance(outcome, Failed)
    assert "the 2 nodes of this training did not meet at 127.0.0.1:" in outcome.error.message
    assert "GPT2_NODE_START_SECONDS" in outcome.error.message
