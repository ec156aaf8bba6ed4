"""The executor of every component: makes the start call, follows the job, writes what it made to ML Metadata."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, ClassVar

from google.protobuf import json_format
from tfx.dsl.components.base.base_executor import BaseExecutor
from tfx.dsl.io import fileio

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_orchestration import calls
from gpt2_orchestration.artifact_types import ServiceArtifact, set_properties
from gpt2_orchestration.calls import StartCall
from gpt2_orchestration.client import ClientSettings, connect
from gpt2_orchestration.pipelines.requests import Input, build_request, run_job, run_name


class StartCallExecutor(BaseExecutor):
    """Runs one start call of one service. Subclasses say which."""

    CALL: ClassVar[StartCall]

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
        inputs = {name: Input(item[0].artifact_uri, item[0].digest) for name, item in input_dict.items() if item}
        request = build_request(
            self.CALL,
            exec_properties["request"],
            inputs,
            run_name(self._context.pipeline_info.id, self._context.pipeline_run_id),
            exec_properties["service_version"],
        )
        with connect(self.CALL.service, ClientSettings.from_environment()) as client:
            job = run_job(client, self.CALL, request)
        outputs = {output.name: output for output in job.outputs}
        for name, artifacts in output_dict.items():
            if name in outputs and artifacts:
                _describe(artifacts[0], outputs[name], job)


def _describe(artifact: ServiceArtifact, output: artifact_pb2.Artifact, job: job_pb2.Job) -> None:
    facts: dict[str, str | float] = {**output.counts, **output.properties}
    set_properties(artifact, {**facts, "artifact_uri": output.uri, "digest": output.digest, "job_id": job.job_id})
    with fileio.open(str(PurePosixPath(artifact.uri) / "artifact.json"), "w") as file:
        file.write(json_format.MessageToJson(output))


class ExportCorpusExecutor(StartCallExecutor):
    """ExportCorpus of the exporter."""

    CALL = calls.EXPORT_CORPUS


class ImportFilesExecutor(StartCallExecutor):
    """ImportFiles of the exporter."""

    CALL = calls.IMPORT_FILES


class TrainTokenizerExecutor(StartCallExecutor):
    """TrainTokenizer of the tokenizer."""

    CALL = calls.TRAIN_TOKENIZER


class ImportTokenizerExecutor(StartCallExecutor):
    """ImportTokenizer of the tokenizer."""

    CALL = calls.IMPORT_TOKENIZER


class EncodeCorpusExecutor(StartCallExecutor):
    """EncodeCorpus of the tokenizer."""

    CALL = calls.ENCODE_CORPUS


class ImportCheckpointExecutor(StartCallExecutor):
    """ImportCheckpoint of the trainer."""

    CALL = calls.IMPORT_CHECKPOINT


class TrainModelExecutor(StartCallExecutor):
    """TrainModel of the trainer, from scratch."""

    CALL = calls.TRAIN_MODEL


class FineTuneModelExecutor(StartCallExecutor):
    """TrainModel of the trainer, from a checkpoint."""

    CALL = calls.FINE_TUNE_MODEL


class ExportModelExecutor(StartCallExecutor):
    """ExportModel of the trainer."""

    CALL = calls.EXPORT_MODEL


class RegisterModelExecutor(StartCallExecutor):
    """RegisterModel of the registry."""

    CALL = calls.REGISTER_MODEL
