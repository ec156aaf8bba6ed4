"""The tasks of a compiled pipeline as pods of a separate namespace, as Kubeflow's runs have one, in their order.

Kubeflow's backend is not here: the test does what its driver and launcher do (`kubeflow_tasks.py`).
"""

import shlex
import time
from pathlib import Path

import pytest

from gpt2.registry.v1 import registry_service_pb2
from gpt2_orchestration.client.service_client import connect
from gpt2_orchestration.pipelines.specification import parse_specification
from gpt2_orchestration.runners.kubeflow.compiling import KubeflowSettings, compile_pipeline
from tests.containers.runs import COLLECTION, DATABASE
from tests.end_to_end.kubeflow_tasks import (
    prepare_task,
    read_kubernetes_options,
    read_outputs,
    read_pipeline,
    tasks_in_order,
)

from .images import VERSION
from .pods import run_pod
from .stores import TOKEN

pytestmark = [pytest.mark.process, pytest.mark.parametrize("services", ["cpu"], indirect=True)]
RUNS = "team-a"
OUTPUTS = "/tmp/outputs"
IMAGE = f"gpt2-airflow:{VERSION}"
MARK = "written: "


@pytest.fixture
def runs_namespace(services, administrator):
    """The namespace of runs, as the how-to makes it."""
    administrator.create_namespace(RUNS)
    kubectl = administrator.control_plane.kubectl
    kubectl("label", "namespace", RUNS, "gpt2/clients=true")
    kubectl("--namespace", RUNS, "create", "secret", "generic", "gpt2", f"--from-literal=auth-token={TOKEN}")
    yield RUNS
    kubectl("delete", "namespace", RUNS)


def compiled(folder: Path) -> Path:
    specification = parse_specification(
        {
            "name": "kubeflow",
            "export_corpus": {"source": {"database": DATABASE, "collections": [COLLECTION]}},
            "train_tokenizer": {"vocabulary_size": 512},
            "encode_corpus": {"validation_fraction": 0.2},
            "train_model": {
                "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_ctx": 16},
                "config": {"steps": 20, "batch_size": 2},
            },
            "register_model": {"model_name": "kubeflow", "label": "staging"},
        }
    )
    compile_pipeline(specification, KubeflowSettings(image=IMAGE, token_secret="gpt2"), folder / "pipeline.yaml")
    return folder / "pipeline.yaml"


def run_task(administrator, task, options):
    """Runs a task's pod, with what the compiled file asks for. Returns what it has printed."""
    secrets = [
        {"name": key["envVar"], "valueFrom": {"secretKeyRef": {"name": secret["secretName"], "key": key["secretKey"]}}}
        for secret in options["secretAsEnv"]
        for key in secret["keyToEnv"]
    ]
    command = shlex.join([*task.container["command"], *task.container["args"]])
    # As the launcher: the folder is there, and what was written is read when the command has ended.
    folder = str(Path(task.output_file).parent)
    read = f"if [ -e {task.output_file} ]; then echo; printf '{MARK}'; cat {task.output_file}; fi"
    script = ["sh", "-ec", f"mkdir -p {folder}\n{command}\n{read}"]
    variables = [*task.container["env"], *secrets]
    labels = options["podMetadata"]["labels"]
    return run_pod(administrator, RUNS, task.name, task.container["image"], script, labels, variables)


def test_each_task_is_a_pod_and_the_last_registers_a_labelled_version(
    services, runs_namespace, administrator, tmp_path, tell
):
    file = compiled(tmp_path)
    spec, options = read_pipeline(file), read_kubernetes_options(file)
    outputs = {}
    for name in tasks_in_order(spec):
        began = time.monotonic()
        task = prepare_task(spec, name, outputs, OUTPUTS)
        component = spec.components[spec.root.dag.tasks[name].component_ref.name]
        printed = run_task(administrator, task, options[component.executor_label])
        assert TOKEN not in printed
        if task.has_outputs:
            outputs |= read_outputs(name, printed.partition(MARK)[2])
        tell(f"{name}: a pod of {time.monotonic() - began:.0f} s")
    with connect("registry", services.client) as registry:
        request = registry_service_pb2.GetModelVersionRequest(model_name="kubeflow", label="staging")
        assert registry.call("GetModelVersion", request).model_version.version == 1
