"""The executor of every component: makes the start call, follows the job, writes what it made to ML Metadata."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, ClassVar

from google.protobuf import json_format
from google.protobuf.message import Message
from tfx.dsl.components.base.base_executor import BaseExecutor
from tfx.dsl.io import fileio

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_orchestration import calls
from gpt2_orchestration.artifact_types import ServiceArtifact, set_properties
from gpt2_orchestration.calls import StartCall
from gpt2_orchestration.client import ClientSettings, ServiceClient, connect
from gpt2_orchestration.progress import job_display

_KEY_CHARACTERS = 8


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
        inputs = {name: artifacts[0] for name, artifacts in input_dict.items() if artifacts}
        request = build_request(self.CALL, exec_properties["request"], inputs)
        options: job_pb2.JobOptions = request.job  # type: ignore[attr-defined]
        options.CopyFrom(self._job_options(cache_key(inputs, exec_properties)))
        with connect(self.CALL.service, ClientSettings.from_environment()) as client:
            job = run_job(client, self.CALL, request)
        outputs = {output.name: output for output in job.outputs}
        for name, artifacts in output_dict.items():
            if name in outputs and artifacts:
                _describe(artifacts[0], outputs[name], job)

    def _job_options(self, key: str) -> job_pb2.JobOptions:
        context = self._context
        run_id = run_name(context.pipeline_info.id, context.pipeline_run_id)
        node = context.pipeline_node.node_info.id
        # The same node of the same run finds its job again, whatever process asks; a failed one gets another attempt.
        return job_pb2.JobOptions(job_id=f"{run_id}/{node}.{key}", run_id=run_id, retry_failed=True)


def run_name(pipeline: str, pipeline_run_id: str) -> str:
    """The run id, in the services' alphabet, of a run of a pipeline."""
    return re.sub(r"[^A-Za-z0-9._-]", "", f"{pipeline}-{pipeline_run_id}")[:100]


def build_request(call: StartCall, request_json: str, inputs: Mapping[str, ServiceArtifact]) -> Message:
    """Builds a start call's request from its JSON form and the artifacts that it takes."""
    request = json_format.Parse(request_json, call.request())
    for name, artifact in inputs.items():
        setattr(request, call.inputs[name], artifact.artifact_uri)
    return request


def cache_key(inputs: Mapping[str, ServiceArtifact], exec_properties: Mapping[str, Any]) -> str:
    """Names the work: the digests of what goes in, the request and the service's version."""
    content = [
        sorted((name, artifact.digest) for name, artifact in inputs.items()),
        exec_properties["request"],
        exec_properties["service_version"],
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:_KEY_CHARACTERS]


def run_job(client: ServiceClient, call: StartCall, request: Message) -> job_pb2.Job:
    """Starts a job and follows it to its end; when this is interrupted, the job is cancelled."""
    job = client.start(call, request)
    try:
        with job_display(call.name) as display:
            return client.follow(job, display.show)
    except (KeyboardInterrupt, SystemExit):
        client.cancel(job.job_id, "the pipeline was interrupted")
        raise


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
