"""A TFX component for each start call.

Each takes its request in JSON, without what comes from other components, and the version of the service that will do
the work. Both are part of TFX's cache key, as that sees neither the services' code nor data outside the pipeline.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from tfx.dsl.components.base.base_component import BaseComponent
from tfx.dsl.components.base.executor_spec import ExecutorClassSpec
from tfx.types import standard_artifacts  # noqa: F401 - TFX registers its artifact types when this is imported
from tfx.types.channel import BaseChannel, Channel
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter

from gpt2_orchestration import artifact_types as types
from gpt2_orchestration import executor

_PARAMETERS = {
    "request": ExecutionParameter(type=str),
    "service_version": ExecutionParameter(type=str),
}
"""The parameters of every component."""


class ServiceComponent(BaseComponent):
    """Base of the components.

    Args:
        request: The start call's request in JSON, without what comes from other components.
        service_version: Version of the service that will do the work.
        inputs: Channels from other components, by name.
    """

    def __init__(self, *, request: str, service_version: str, **inputs: BaseChannel) -> None:
        outputs = {name: Channel(type=parameter.type) for name, parameter in self.SPEC_CLASS.OUTPUTS.items()}
        spec = self.SPEC_CLASS(request=request, service_version=service_version, **inputs, **outputs)
        super().__init__(spec)


def _spec(
    name: str, inputs: Mapping[str, type[types.ServiceArtifact]], outputs: Mapping[str, type[types.ServiceArtifact]]
) -> Any:
    """The specification class of a component."""
    members: dict[str, Any] = {
        "PARAMETERS": _PARAMETERS,
        "INPUTS": {key: ChannelParameter(type=kind) for key, kind in inputs.items()},
        "OUTPUTS": {key: ChannelParameter(type=kind) for key, kind in outputs.items()},
    }
    return type(name, (ComponentSpec,), members)


class ExportCorpus(ServiceComponent):
    """MongoDB to corpus. Its request carries a snapshot of the data, so that new documents are not taken for old."""

    SPEC_CLASS: ClassVar[Any] = _spec("ExportCorpusSpec", {}, {"corpus": types.Corpus})
    EXECUTOR_SPEC: ClassVar[Any] = ExecutorClassSpec(executor.ExportCorpusExecutor)


class ImportFiles(ServiceComponent):
    """Text files to corpus."""

    SPEC_CLASS: ClassVar[Any] = _spec("ImportFilesSpec", {}, {"corpus": types.Corpus})
    EXECUTOR_SPEC: ClassVar[Any] = ExecutorClassSpec(executor.ImportFilesExecutor)


class TrainTokenizer(ServiceComponent):
    """Corpus to tokenizer."""

    SPEC_CLASS: ClassVar[Any] = _spec("TrainTokenizerSpec", {"corpus": types.Corpus}, {"tokenizer": types.Tokenizer})
    EXECUTOR_SPEC: ClassVar[Any] = ExecutorClassSpec(executor.TrainTokenizerExecutor)


class ImportTokenizer(ServiceComponent):
    """An existing tokenizer."""

    SPEC_CLASS: ClassVar[Any] = _spec("ImportTokenizerSpec", {}, {"tokenizer": types.Tokenizer})
    EXECUTOR_SPEC: ClassVar[Any] = ExecutorClassSpec(executor.ImportTokenizerExecutor)


class EncodeCorpus(ServiceComponent):
    """Corpus and tokenizer to dataset."""

    SPEC_CLASS: ClassVar[Any] = _spec(
        "EncodeCorpusSpec", {"corpus": types.Corpus, "tokenizer": types.Tokenizer}, {"dataset": types.Dataset}
    )
    EXECUTOR_SPEC: ClassVar[Any] = ExecutorClassSpec(executor.EncodeCorpusExecutor)


class ImportCheckpoint(ServiceComponent):
    """Existing weights, with their tokenizer."""

    SPEC_CLASS: ClassVar[Any] = _spec(
        "ImportCheckpointSpec", {}, {"checkpoint": types.Checkpoint, "tokenizer": types.Tokenizer}
    )
    EXECUTOR_SPEC: ClassVar[Any] = ExecutorClassSpec(executor.ImportCheckpointExecutor)


_TRAINED = {"checkpoint": types.Checkpoint, "logs": types.Logs, "samples": types.Samples}


class TrainModel(ServiceComponent):
    """Dataset to a model trained from scratch."""

    SPEC_CLASS: ClassVar[Any] = _spec("TrainModelSpec", {"dataset": types.Dataset}, _TRAINED)
    EXECUTOR_SPEC: ClassVar[Any] = ExecutorClassSpec(executor.TrainModelExecutor)


class FineTuneModel(ServiceComponent):
    """Dataset and checkpoint to a model trained further."""

    SPEC_CLASS: ClassVar[Any] = _spec(
        "FineTuneModelSpec", {"dataset": types.Dataset, "initial_checkpoint": types.Checkpoint}, _TRAINED
    )
    EXECUTOR_SPEC: ClassVar[Any] = ExecutorClassSpec(executor.FineTuneModelExecutor)


class ExportModel(ServiceComponent):
    """Checkpoint to servable model."""

    SPEC_CLASS: ClassVar[Any] = _spec("ExportModelSpec", {"checkpoint": types.Checkpoint}, {"model": types.Model})
    EXECUTOR_SPEC: ClassVar[Any] = ExecutorClassSpec(executor.ExportModelExecutor)


class RegisterModel(ServiceComponent):
    """Model and its training logs to a registered, labelled version."""

    SPEC_CLASS: ClassVar[Any] = _spec(
        "RegisterModelSpec", {"model": types.Model, "logs": types.Logs}, {"version": types.ModelVersion}
    )
    EXECUTOR_SPEC: ClassVar[Any] = ExecutorClassSpec(executor.RegisterModelExecutor)


COMPONENTS: Mapping[str, type[ServiceComponent]] = {
    component.__name__: component
    for component in (
        ExportCorpus,
        ImportFiles,
        TrainTokenizer,
        ImportTokenizer,
        EncodeCorpus,
        ImportCheckpoint,
        TrainModel,
        FineTuneModel,
        ExportModel,
        RegisterModel,
    )
}
"""The components by the name of their stage."""
