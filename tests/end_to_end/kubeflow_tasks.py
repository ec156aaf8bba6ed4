"""The tasks of a compiled pipeline, as Kubeflow's driver prepares them and its launcher starts and reads them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

RUN_ID = "0b7c9a52-6f0e-4b58-9d53-4d1f0f6f7a11"
Outputs = dict[tuple[str, str], Any]
"""Artifacts by the names of the task and the output."""


@dataclass(frozen=True)
class Task:
    """A task whose inputs are resolved.

    Attributes:
        name: The task's.
        container: What runs: image, command, arguments and variables.
        output_file: Where the container writes what it has made.
        has_outputs: Whether it makes any.
    """

    name: str
    container: Mapping[str, Any]
    output_file: str
    has_outputs: bool


def read_pipeline(compiled: Path) -> pipeline_spec_pb2.PipelineSpec:
    """The pipeline in a file."""
    content = next(iter(yaml.safe_load_all(compiled.read_text())))
    return json_format.ParseDict(content, pipeline_spec_pb2.PipelineSpec())


def read_kubernetes_options(compiled: Path) -> Mapping[str, Any]:
    """What the file says of the pods of its tasks, by the names of their executors."""
    [_, platforms] = yaml.safe_load_all(compiled.read_text())
    executors: Mapping[str, Any] = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return executors


def tasks_in_order(spec: pipeline_spec_pb2.PipelineSpec) -> Iterator[str]:
    """Names of all tasks, each after those that it depends on."""
    waiting = dict(spec.root.dag.tasks)
    while waiting:
        for name in [name for name, task in waiting.items() if not set(task.dependent_tasks) & set(waiting)]:
            yield name
            del waiting[name]


def prepare_task(spec: pipeline_spec_pb2.PipelineSpec, name: str, outputs: Outputs, folder: str) -> Task:
    """Resolves a task's inputs, and fills in its executor input.

    Args:
        spec: The pipeline.
        name: The task's.
        outputs: What the tasks before it have made.
        folder: Where the container writes, as it sees it.
    """
    task = spec.root.dag.tasks[name]
    component = spec.components[task.component_ref.name]
    parameters = {
        key: RUN_ID if (value := item.runtime_value.constant.string_value) == "{{$.pipeline_job_uuid}}" else value
        for key, item in task.inputs.parameters.items()
    }
    artifacts = {
        key: {
            "artifacts": [
                outputs[item.task_output_artifact.producer_task, item.task_output_artifact.output_artifact_key]
            ]
        }
        for key, item in task.inputs.artifacts.items()
    }
    made = {
        key: {
            "artifacts": [
                {
                    "name": key,
                    "type": {"schemaTitle": definition.artifact_type.schema_title},
                    "uri": f"file://{folder}/{name}/{key}",
                }
            ]
        }
        for key, definition in component.output_definitions.artifacts.items()
    }
    output_file = f"{folder}/{name}/executor_output.json"
    executor_input = {
        "inputs": {"parameterValues": parameters, "artifacts": artifacts},
        "outputs": {"artifacts": made, "outputFile": output_file},
    }
    json_format.ParseDict(executor_input, pipeline_spec_pb2.ExecutorInput())
    content = json_format.MessageToDict(spec)["deploymentSpec"]["executors"][component.executor_label]["container"]
    filled = [json.dumps(executor_input) if item == "{{$}}" else item for item in content["args"]]
    return Task(name, {**content, "args": filled}, output_file, bool(made))


def read_outputs(name: str, written: str) -> Outputs:
    """The artifacts of a task, from what it has written."""
    output = json_format.Parse(written, pipeline_spec_pb2.ExecutorOutput())
    artifacts = json_format.MessageToDict(output)["artifacts"]
    return {(name, key): item["artifacts"][0] for key, item in artifacts.items()}
