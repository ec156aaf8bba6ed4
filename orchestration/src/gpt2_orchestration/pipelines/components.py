"""TFX components of the catalogue's stages, with the artifact types and the executor that they need.

TFX gives every artifact a folder, which holds a copy of the service's description of it (`artifact.json`). The data is
where the service stored it, under the property `artifact_uri`.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import PurePosixPath
from typing import Any, ClassVar

from google.protobuf import json_format
from tfx.dsl.components.base.base_component import BaseComponent
from tfx.dsl.components.base.base_executor import BaseExecutor
from tfx.dsl.components.base.executor_spec import ExecutorClassSpec
from tfx.dsl.io import fileio
from tfx.types import standard_artifacts  # noqa: F401 - TFX registers its artifact types when this is imported
from tfx.types.artifact import Artifact, Property, PropertyType
from tfx.types.channel import BaseChannel, Channel
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_catalogue import Stage, catalogue
from gpt2_contracts import artifact, corpus, dataset, model, model_version, tokenizer, training
from gpt2_orchestration.client.service_client import ClientSettings, connect
from gpt2_orchestration.pipelines.requests import Input, build_request, run_job, run_name

_INDEXED: Mapping[str, Mapping[str, type]] = {
    artifact.CORPUS: corpus.INDEXED,
    artifact.TOKENIZER: tokenizer.INDEXED,
    artifact.DATASET: dataset.INDEXED,
    artifact.CHECKPOINT: training.INDEXED,
    artifact.MODEL: model.INDEXED,
    artifact.VERSION: model_version.INDEXED,
}
"""Counts and properties that ML Metadata stores of an artifact, by kind. `artifact.json` has all of them."""

_COMMON: Mapping[str, type] = {"artifact_uri": str, "digest": str, "job_id": str}
"""Properties of every kind."""

_PROPERTY_TYPES = {str: PropertyType.STRING, int: PropertyType.INT, float: PropertyType.FLOAT}

_TYPE_NAMES = {artifact.VERSION: "Gpt2ModelVersion"}
"""Names of types in ML Metadata that do not follow from the kind."""


class ServiceArtifact(Artifact):
    """An artifact that a service made. Its subclasses are the types of the kinds: see `artifact_type`."""

    INDEXED: ClassVar[Mapping[str, type]]

    def set_properties(self, values: Mapping[str, str | float]) -> None:
        """Sets the properties that the type declares; other values are ignored."""
        for name, convert in self.INDEXED.items():
            if name in values:
                value = float(values[name]) if convert is int else values[name]
                setattr(self, name, convert(value))


@cache
def artifact_type(kind: str) -> type[ServiceArtifact]:
    """The type of a kind of artifact in ML Metadata."""
    name = _TYPE_NAMES.get(kind, f"Gpt2{kind.title().replace('_', '')}")
    indexed = {**_COMMON, **_INDEXED.get(kind, {})}
    properties = {key: Property(type=_PROPERTY_TYPES[value]) for key, value in indexed.items()}
    return type(name, (ServiceArtifact,), {"TYPE_NAME": name, "PROPERTIES": properties, "INDEXED": indexed})


class StartCallExecutor(BaseExecutor):
    """Runs the stage that its component's id names: makes the start call, follows the job, records what it made."""

    def Do(
        self,
        input_dict: Mapping[str, Sequence[ServiceArtifact]],
        output_dict: Mapping[str, Sequence[ServiceArtifact]],
        exec_properties: Mapping[str, Any],
    ) -> None:
        """Does the component's work.

        Raises:
            JobFailed: The job ended FAILED or CANCELLED.
            ServiceError: The service refused the call or does not answer.
        """
        stage = catalogue().stages[self._context.pipeline_node.node_info.id]
        given = {item.name: input_dict.get(channel_name(stage, item.name)) for item in stage.inputs}
        inputs = {name: Input(item[0].artifact_uri, item[0].digest) for name, item in given.items() if item}
        run_id = run_name(self._context.pipeline_info.id, self._context.pipeline_run_id)
        request = build_request(stage, exec_properties["request"], inputs, run_id, exec_properties["service_version"])
        with connect(stage.service, ClientSettings.from_environment()) as client:
            job = run_job(client, stage.name, request)
        outputs = {output.name: output for output in job.outputs}
        for name, artifacts in output_dict.items():
            if name in outputs and artifacts:
                _record(artifacts[0], outputs[name], job)


def _record(made: ServiceArtifact, output: artifact_pb2.Artifact, job: job_pb2.Job) -> None:
    facts: dict[str, str | float] = {**output.counts, **output.properties}
    made.set_properties({**facts, "artifact_uri": output.uri, "digest": output.digest, "job_id": job.job_id})
    with fileio.open(str(PurePosixPath(made.uri) / "artifact.json"), "w") as file:
        file.write(json_format.MessageToJson(output))


class ServiceComponent(BaseComponent):
    """Base of the components: see `component_class`.

    The request and the service's version are part of TFX's cache key, which covers neither the services' code nor data
    outside the pipeline.

    Args:
        request: The start call's request in JSON, without what comes from other components.
        service_version: Version of the service that will do the work.
        inputs: Channels from other components, by name of the input.
    """

    STAGE: ClassVar[Stage]
    EXECUTOR_SPEC: ClassVar[Any] = ExecutorClassSpec(StartCallExecutor)

    def __init__(self, *, request: str, service_version: str, **inputs: BaseChannel) -> None:
        outputs = {name: Channel(type=parameter.type) for name, parameter in self.SPEC_CLASS.OUTPUTS.items()}
        channels = {channel_name(self.STAGE, name): channel for name, channel in inputs.items()}
        spec = self.SPEC_CLASS(request=request, service_version=service_version, **channels, **outputs)
        super().__init__(spec)


@cache
def component_class(stage: Stage) -> type[ServiceComponent]:
    """The component of a stage; its inputs and outputs are channels of the names and kinds in the catalogue."""
    members: dict[str, Any] = {
        "PARAMETERS": {name: ExecutionParameter(type=str) for name in ("request", "service_version")},
        "INPUTS": {
            channel_name(stage, item.name): ChannelParameter(type=artifact_type(item.kind), optional=not item.required)
            for item in stage.inputs
            if not item.only_from_request
        },
        "OUTPUTS": {item.name: ChannelParameter(type=artifact_type(item.kind)) for item in stage.outputs},
    }
    spec = type(f"{stage.name}Spec", (ComponentSpec,), members)
    return type(stage.name, (ServiceComponent,), {"STAGE": stage, "SPEC_CLASS": spec, "__module__": __name__})


def channel_name(stage: Stage, name: str) -> str:
    """Name of an input's channel: TFX allows no input that is named as an output of its component."""
    return f"input_{name}" if name in stage.output_names else name
