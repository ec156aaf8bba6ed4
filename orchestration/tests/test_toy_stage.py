"""A fifth service with a stage, known by its proto alone, is a part of pipelines, of TFX, Kubeflow and Airflow."""

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from google.rpc import status_pb2

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "services" / "common" / "tests" / "toy" / "toy_service.proto"
SPECIFICATION = {
    "name": "toy",
    "import_files": {"uris": ["file:///data"]},
    "train_tokenizer": {"vocabulary_size": 300},
    "count_words": {"min_length": 3},
    "train_model": {"model_size": "124M", "config": {"steps": 1}},
    "register_model": {"model_name": "toy"},
}
_LOAD = """
import json, sys
from pathlib import Path
from gpt2_orchestration.pipelines.specification import load_specification
path, output = Path(sys.argv[1]), Path(sys.argv[2])
specification = load_specification(path)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs Python with the toy service's stubs on its path, after `_LOAD`. Returns what it prints, read as JSON."""
    folder = tmp_path_factory.mktemp("toy")
    proto = folder / "protos" / "gpt2" / "toy" / "v1" / "toy_service.proto"
    proto.parent.mkdir(parents=True)
    proto.write_bytes(PROTO.read_bytes())
    includes = [
        folder / "protos",
        ROOT / "protos",
        files("grpc_tools") / "_proto",
        Path(status_pb2.__file__).parents[2],
    ]
    options = [*(f"-I{include}" for include in includes), f"--python_out={folder}", "gpt2/toy/v1/toy_service.proto"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options], check=True)
    for package in ("toy", "toy/v1"):
        (folder / "gpt2" / package / "__init__.py").touch()

    def run(code: str, content: dict = SPECIFICATION, python: Path = Path(sys.executable), status: int = 0):
        path = folder / "toy.yaml"
        path.write_text(yaml.safe_dump(content))
        command = [python, "-c", _LOAD + code, path, folder / "output.yaml"]
        environment = {**os.environ, "PYTHONPATH": str(folder), "AIRFLOW_HOME": str(folder / "airflow")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=folder)
        assert done.returncode == status, done.stderr
        return done.stderr if status else json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.mark.process
def test_its_section_is_checked_by_its_rules(run):
    wrong = {**SPECIFICATION, "count_words": {"min_length": -1, "corpus_uri": "file:///x", "words": 1}}
    errors = run("", wrong, status=1)
    assert "count_words.words: unknown field" in errors
    assert "count_words.min_length: must be 1 or greater, not -1" in errors
    assert "count_words.corpus_uri: comes from another stage of the pipeline; remove it" in errors


@pytest.mark.process
def test_it_takes_its_input_from_the_stage_that_makes_it_and_its_service_has_an_address(run):
    code = """
from gpt2_orchestration.client.service_client import ClientSettings
stage = next(stage for stage in specification.stages() if stage.name == "CountWords")
inputs = {name: [source.stage, source.output] for name, source in stage.inputs.items()}
print(json.dumps([inputs, stage.request.min_length, ClientSettings.from_environment({}).addresses["toy"]]))
"""
    assert run(code) == [{"corpus": ["ImportFiles", "corpus"]}, 3, "localhost:50055"]


@pytest.mark.process
def test_it_is_a_component_of_tfx(run):
    code = """
from gpt2_orchestration.pipelines.pipeline import create_pipeline
from gpt2_orchestration.pipelines.settings import PipelineSettings, ServiceFacts
settings = PipelineSettings(root=output.parent, metadata=output.with_suffix(".db"))
pipeline = create_pipeline(specification, ServiceFacts(versions={"toy": "1.2"}), settings)
component = next(component for component in pipeline.components if component.id == "CountWords")
channels = {name: channel.type.TYPE_NAME for name, channel in {**component.inputs, **component.outputs}.items()}
print(json.dumps([channels, component.exec_properties, [node.id for node in component.upstream_nodes]]))
"""
    channels, properties, upstream = run(code)
    assert channels == {"corpus": "Gpt2Corpus", "words": "Gpt2Words"}
    assert properties == {"request": '{"minLength": 3}', "service_version": "1.2"}
    assert upstream == ["ImportFiles"]


@pytest.mark.process
def test_it_is_a_task_of_kubeflow(run):
    code = """
import yaml
from gpt2_orchestration.runners.kubeflow.compiling import KubeflowSettings, compile_pipeline
compile_pipeline(specification, KubeflowSettings(image="gpt2:1"), output)
print(json.dumps(next(yaml.safe_load_all(output.read_text()))))
"""
    compiled = run(code)
    task = compiled["root"]["dag"]["tasks"]["countwords"]
    assert task["inputs"]["artifacts"]["corpus"]["taskOutputArtifact"]["producerTask"] == "importfiles"
    component = compiled["components"]["comp-countwords"]
    assert list(component["outputDefinitions"]["artifacts"]) == ["words"]
    container = compiled["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
    assert container["args"][0] == "CountWords"
    assert {"name": "GPT2_TOY_ADDRESS", "value": "toy.gpt2:50055"} in container["env"]


def test_it_is_a_task_of_airflow(run, airflow_programs):
    code = """
from gpt2_orchestration.runners.airflow.dags import pipeline_dag, services_dag
from gpt2_orchestration.runners.airflow.settings import AirflowSettings
settings = AirflowSettings(pipelines=path.parent, folder=output.parent)
dags = [make(path, settings) for make in (pipeline_dag, services_dag)]
print(json.dumps([list(dag.get_task("CountWords").upstream_task_ids) for dag in dags]))
"""
    assert run(code, python=airflow_programs / "python") == [["ImportFiles"], ["ImportFiles"]]
