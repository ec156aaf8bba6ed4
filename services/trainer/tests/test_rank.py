"""Which node of a training a process is, by its environment, and where several nodes are refused."""

import pytest

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.artifacts import ArtifactStore
from gpt2_common.errors import FailedPrecondition
from gpt2_rules import violations
from gpt2_trainer.service import TRAINER
from gpt2_trainer.settings import TrainerSettings
from gpt2_trainer.training.rank import Rank
from gpt2_trainer.validation import backend_problems, process_problems, size_problems, trainjob_problems

VARIABLES = {"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3", "JAX_COORDINATOR_ADDRESS": "gpt2-x-node-0-0.gpt2-x:29500"}


def training(**config):
    return pb.TrainModelRequest(config=pb.TrainConfig(**config))


def test_the_variables_of_kubeflow_trainer_say_which_node_it_is():
    rank = Rank.of(VARIABLES, 4)
    assert (rank.index, rank.count, rank.coordinator) == (3, 4, "gpt2-x-node-0-0.gpt2-x:29500")
    assert not rank.is_first
    assert Rank.of({**VARIABLES, "JAX_PROCESS_ID": "0"}).is_first


@pytest.mark.parametrize("variables", [{}, {**VARIABLES, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}])
def test_a_process_is_alone_without_them(variables):
    assert Rank.of(variables) == Rank(0, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_NUM_PROCESSES": "0"}, "JAX_NUM_PROCESSES: '0' is no integer of at least 1"),
        ({"JAX_NUM_PROCESSES": "four"}, "JAX_NUM_PROCESSES: 'four'"),
        ({"JAX_PROCESS_ID": ""}, "JAX_PROCESS_ID: '' is no integer"),
        ({"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID: '-1'"),
        ({"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID: 4 is not below JAX_NUM_PROCESSES, which is 4"),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "JAX_COORDINATOR_ADDRESS: 'host' is no address"),
        ({"JAX_COORDINATOR_ADDRESS": ":29500"}, "JAX_COORDINATOR_ADDRESS: ':29500' is no address"),
    ],
)
def test_wrong_variables_are_named(changes, message):
    with pytest.raises(FailedPrecondition, match=message):
        Rank.of(VARIABLES | changes)


def test_several_nodes_without_a_jax_runtime_are_refused():
    """Each would think that it is alone, and take the training from the others."""
    with pytest.raises(FailedPrecondition, match=r"config.num_nodes: 2 nodes are asked for.*JAX_NUM_PROCESSES"):
        Rank.of({}, 2)


@pytest.mark.parametrize(("num_nodes", "is_wrong"), [(-1, True), (1, False), (1024, False), (1025, True)])
def test_the_number_of_nodes_has_limits(num_nodes, is_wrong):
    request = training(num_nodes=num_nodes)
    assert ("config.num_nodes" in {field for field, _ in violations(request)}) == is_wrong


def test_a_refusal_of_nodes_names_the_setting_to_raise():
    assert trainjob_problems(training(num_nodes=4), 1, 4) == trainjob_problems(training(), 1, 1) == []
    [(field, text)] = trainjob_problems(training(num_nodes=4), 1, 1)
    assert field == "config.num_nodes"
    assert text.startswith("must be at most 1, not 4")
    assert "raise GPT2_TRAINJOB_MAX_NODES" in text


def test_nodes_are_refused_where_trainings_are_processes_or_run_on_tensorflow():
    assert process_problems(training()) == process_problems(training(num_nodes=1)) == []
    [(field, text)] = process_problems(training(num_nodes=2))
    assert field == "config.num_nodes"
    assert "GPT2_TRAINING_BACKEND=trainjob" in text
    [(field, text)] = backend_problems(training(num_nodes=2), "tensorflow")
    assert field == "config.num_nodes"
    assert "KERAS_BACKEND=jax" in text
    assert backend_problems(training(num_nodes=2), "jax") == []


@pytest.mark.parametrize(
    ("options", "is_refused"),
    [
        ({"training_backend": "process"}, True),
        ({"training_backend": "trainjob"}, False),
        ({"training_backend": "trainjob", "trainjob_max_nodes": 1}, True),
        ({"training_backend": "trainjob", "trainjob_max_nodes": 2}, False),
    ],
)
def test_the_service_refuses_nodes_that_it_does_not_start(options, is_refused):
    settings = TrainerSettings(**options, trainjob_image="image", keras_backend="jax")
    assert TRAINER.checks is not None
    checks = TRAINER.checks(settings, ArtifactStore(settings.artifact_root, settings.roots, settings.scratch_folder))
    found = checks["TrainModel"].request(training(num_nodes=2, steps=1, batch_size=2))
    assert ("config.num_nodes" in {field for field, _ in found}) == is_refused


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"num_nodes": 3}, "config.num_nodes"),
        ({"num_nodes": 4, "devices": 4}, "config.devices"),
        ({"num_nodes": 4, "gradient_accumulation_steps": 4}, "config.num_nodes"),
        ({"num_nodes": 2, "devices": 2, "model_devices": 3}, "config.model_devices"),
        ({"num_nodes": 2, "devices": 4}, None),
        ({"num_nodes": 4, "devices": 4, "model_devices": 2}, None),
        ({"num_nodes": 3, "devices": 2, "model_devices": 6}, None),
    ],
)
def test_batches_divide_over_the_devices_of_all_nodes(config, field):
    found = size_problems(pb.TrainConfig(steps=1, batch_size=8, context_length=8, **config), None, None)
    assert [name for name, _ in found] == [field] * (field is not None)


@pytest.mark.parametrize(("gpus", "field"), [(1, "config.model_devices"), (2, None)])
def test_a_copy_of_the_model_may_span_the_gpus_of_all_nodes(gpus, field):
    found = trainjob_problems(training(num_nodes=2, model_devices=4), gpus, 0)
    assert [name for name, _ in found] == [field] * (field is not None)
