"""Requests of pipeline stages, and the jobs that they start."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from gpt2.jobs.v1 import job_pb2
from gpt2_catalogue import Stage
from gpt2_orchestration.client.progress import job_display
from gpt2_orchestration.client.service_client import ServiceClient, ServiceError

ON_INTERRUPT = "GPT2_ON_INTERRUPT"
"""Variable for the job of an interrupted component: `cancel` (the default) or `leave` it running."""

_KEY_CHARACTERS = 8


@dataclass(frozen=True, slots=True)
class Input:
    """An input artifact of a stage."""

    uri: str
    """URI where the service stored it."""
    digest: str


def request_json(request: Message) -> str:
    """A request as a component's parameter, in canonical JSON."""
    content: dict[str, Any] = json_format.MessageToDict(request)
    return json.dumps(content, sort_keys=True)


def run_name(pipeline: str, pipeline_run_id: str) -> str:
    """The run id of a pipeline's run, in the characters that services accept."""
    return re.sub(r"[^A-Za-z0-9._-]", "", f"{pipeline}-{pipeline_run_id}")[:100]


def build_request(
    stage: Stage, request: str, inputs: Mapping[str, Input], run_id: str, service_version: str = ""
) -> Message:
    """Builds the request of a start call, with a job id that is the same for the same work of the same run.

    Args:
        stage: The stage.
        request: Its request in JSON, without inputs from other stages.
        inputs: Artifacts from other stages, by input name.
        run_id: The job's run; see `run_name`.
        service_version: Version of the service that is to do the work.
    """
    message = json_format.Parse(request, stage.request())
    for item in stage.inputs:
        if item.name in inputs:
            setattr(message, item.field, inputs[item.name].uri)
    content = [sorted((name, item.digest) for name, item in inputs.items()), request, service_version]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:_KEY_CHARACTERS]
    # A retry in any process finds the job; a failed job gets another attempt.
    options = job_pb2.JobOptions(job_id=f"{run_id}/{stage.name}.{key}", run_id=run_id, retry_failed=True)
    message.job.CopyFrom(options)  # type: ignore[attr-defined]
    return message


def run_job(client: ServiceClient, start: str, request: Message) -> job_pb2.Job:
    """Starts a job and follows it to its end.

    An interrupt (Ctrl-C, or a runner that ends the task) cancels the job, unless GPT2_ON_INTERRUPT=leave; a retry then
    finds it by its id.

    Raises:
        JobFailed: The job ended FAILED or CANCELLED.
        ServiceError: The service refused the call or does not answer.
    """
    job = client.start(start, request)
    try:
        with job_display(start) as display:
            return client.follow(job, display.show)
    except ServiceError:
        raise
    except BaseException:
        if os.environ.get(ON_INTERRUPT) != "leave":
            client.cancel(job.job_id, "the pipeline was interrupted")
        raise
