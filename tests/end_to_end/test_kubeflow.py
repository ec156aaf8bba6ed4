"""A pipeline compiled for Kubeflow: valid by its own schema, and run container by container as it would be there.

What Kubeflow's driver and launcher do is done here, and the container's command is a process (`tests/node` has pods).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2.registry.v1 import registry_service_pb2
from gpt2_orchestration.client.service_client import connect
from gpt2_orchestration.pipelines.specification import SpecificationError, parse_specification
from gpt2_orchestration.runners.kubeflow.compiling import KubeflowSettings, compile_pipeline, parse_addresses

from .kubeflow_tasks import prepare_task, read_outputs, read_pipeline, tasks_in_order

CANARY = "canary-of-whoever-compiles"


@pytest.fixture
def compiled(stack, tmp_path, monkeypatch):
    monkeypatch.setenv("GPT2_CLIENT_TOKEN", CANARY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    texts = stack.folder.parent / "kubeflow"
    texts.mkdir(exist_ok=True)
    for number in range(20):
        (texts / f"{number}.txt").write_text(f"{number} bottles of beer on the wall, {{{{ beer }}}} " * 40)
    specification = parse_specification(
        {
            "name": "kubeflow",
            "import_files": {"uris": [texts.as_uri()]},
            "train_tokenizer": {"vocabulary_size": 300},
            "encode_corpus": {"validation_fraction": 0.5},
            "train_model": {
                "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_ctx": 16},
                "config": {"steps": 4, "batch_size": 2, "sample_prompt": "{{ beer }}"},
            },
            "register_model": {"model_name": "kubeflow", "label": "staging"},
        }
    )
    output = tmp_path / "pipeline.yaml"
    settings = KubeflowSettings(image="gpt2:1", addresses=stack.client.addresses, token_secret="gpt2-client")
    compile_pipeline(specification, settings, output)
    return output


def run_task(spec, name, outputs, folder):
    """Runs a task's container as a process. Returns that, and adds to the outputs."""
    task = prepare_task(spec, name, outputs, str(folder))
    environment = {item["name"]: item["value"] for item in task.container["env"]}
    command = [sys.executable, *task.container["command"][1:], *task.container["args"]]
    result = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)
    if result.returncode == 0 and task.has_outputs:
        outputs |= read_outputs(name, Path(task.output_file).read_text())
    return result


def test_the_file_names_the_secret_of_the_token_and_holds_none(compiled):
    text = compiled.read_text()
    assert "secretName: gpt2-client" in text
    assert CANARY not in text


def test_each_container_does_its_stage_and_a_retry_finds_its_job(compiled, stack, tmp_path):
    spec = read_pipeline(compiled)
    assert all(not task.caching_options.enable_cache for task in spec.root.dag.tasks.values())
    assert all(task.retry_policy.max_retry_count == 3 for task in spec.root.dag.tasks.values())
    outputs: dict = {}
    for name in tasks_in_order(spec):
        result = run_task(spec, name, outputs, tmp_path)
        assert result.returncode == 0, result.stderr
        assert CANARY not in result.stderr + result.stdout
    first = outputs["trainmodel", "checkpoint"]["metadata"]
    assert run_task(spec, "trainmodel", outputs, tmp_path / "retry").returncode == 0
    assert outputs["trainmodel", "checkpoint"]["metadata"]["job_id"] == first["job_id"]
    assert outputs["trainmodel", "checkpoint"]["metadata"]["digest"] == first["digest"]
    assert CANARY not in str(outputs)
    with connect("registry", stack.client) as registry:
        request = registry_service_pb2.GetModelVersionRequest(model_name="kubeflow", label="staging")
        assert registry.call("GetModelVersion", request).model_version.version == 1


def test_a_failed_stage_fails_its_task_and_says_why(compiled, tmp_path):
    spec = read_pipeline(compiled)
    task = spec.root.dag.tasks["importfiles"]
    task.inputs.parameters["request"].runtime_value.constant.string_value = '{"uris": ["file:///nowhere"]}'
    result = run_task(spec, "importfiles", {}, tmp_path)
    assert result.returncode == 1
    assert "ImportFiles: the exporter refused the call (INVALID_ARGUMENT)" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_first_container_finds_a_mistake_of_the_last_stage(compiled, tmp_path):
    spec = read_pipeline(compiled)
    first = [name for name, task in spec.root.dag.tasks.items() if not task.dependent_tasks]
    assert first == ["validatestages"]
    stages = spec.root.dag.tasks["validatestages"].inputs.parameters["stages"].runtime_value.constant
    stages.string_value = stages.string_value.replace('"label": "staging"', '"label": "Staging Area"')
    result = run_task(spec, "validatestages", {}, tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("register_model.label: must be letters, digits")
    assert len(result.stderr.splitlines()) == 1


def test_addresses_are_checked():
    assert parse_addresses(["trainer=gpu:1"])["trainer"] == "gpu:1"
    assert parse_addresses([])["exporter"] == "exporter.gpt2:50051"
    with pytest.raises(SpecificationError, match="SERVICE=HOST:PORT"):
        parse_addresses(["trainer"])
