"""Stages that the pipelines share."""

import json
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from tfx.dsl.components.base.base_component import BaseComponent
from tfx.orchestration import metadata
from tfx.orchestration.pipeline import Pipeline
from tfx.types.channel import BaseChannel

from gpt2.exporter.v1 import exporter_service_pb2
from gpt2.trainer.v1 import trainer_service_pb2
from gpt2_orchestration import components
from gpt2_orchestration.calls import StartCall
from gpt2_orchestration.executor import StartCallExecutor
from gpt2_orchestration.pipelines.settings import PipelineSettings, ServiceFacts
from gpt2_orchestration.specification import PipelineSpecification


class Stages:
    """Makes the components of one pipeline.

    Args:
        specification: What the pipeline does.
        facts: What the services say now.
    """

    def __init__(self, specification: PipelineSpecification, facts: ServiceFacts) -> None:
        self._specification = specification
        self._facts = facts
        self.made: list[BaseComponent] = []

    def add(
        self, component: type[components.ServiceComponent], request: Message, **inputs: BaseChannel
    ) -> dict[str, BaseChannel]:
        """Adds a component. Returns its outputs."""
        executor: type[StartCallExecutor] = component.EXECUTOR_SPEC.executor_class
        call: StartCall = executor.CALL
        stage = component(request=request_json(request), service_version=self._facts.versions[call.service], **inputs)
        self.made.append(stage)
        outputs: dict[str, BaseChannel] = stage.outputs
        return outputs

    def corpus(self) -> BaseChannel:
        """The corpus, from MongoDB or from files."""
        if self._specification.import_files is not None:
            return self.add(components.ImportFiles, self._specification.import_files)["corpus"]
        request = exporter_service_pb2.ExportCorpusRequest()
        request.CopyFrom(self._specification.export_corpus or request)
        request.snapshot = self._facts.snapshot
        return self.add(components.ExportCorpus, request)["corpus"]

    def tokenizer(self, corpus: BaseChannel) -> BaseChannel | None:
        """The tokenizer, trained or imported; None when it comes from elsewhere."""
        if self._specification.train_tokenizer is not None:
            return self.add(components.TrainTokenizer, self._specification.train_tokenizer, corpus=corpus)["tokenizer"]
        if self._specification.import_tokenizer is not None:
            return self.add(components.ImportTokenizer, self._specification.import_tokenizer)["tokenizer"]
        return None

    def dataset(self, corpus: BaseChannel, tokenizer: BaseChannel) -> BaseChannel:
        """The dataset."""
        request = self._specification.encode_corpus
        return self.add(components.EncodeCorpus, request, corpus=corpus, tokenizer=tokenizer)["dataset"]

    def release(self, trained: dict[str, BaseChannel]) -> None:
        """The servable model, registered."""
        exported = self.add(
            components.ExportModel, trainer_service_pb2.ExportModelRequest(), checkpoint=trained["checkpoint"]
        )
        self.add(
            components.RegisterModel,
            self._specification.register_model,
            model=exported["model"],
            logs=trained["logs"],
        )

    def pipeline(self, settings: PipelineSettings) -> Pipeline:
        """The pipeline of all components made."""
        settings.metadata.parent.mkdir(parents=True, exist_ok=True)
        return Pipeline(
            pipeline_name=self._specification.name,
            pipeline_root=str(settings.root),
            components=self.made,
            enable_cache=settings.enable_cache,
            metadata_connection_config=metadata.sqlite_metadata_connection_config(str(settings.metadata)),
        )


def request_json(request: Message) -> str:
    """A request as a component's parameter: the same request gives the same text."""
    content: dict[str, Any] = json_format.MessageToDict(request)
    return json.dumps(content, sort_keys=True)
