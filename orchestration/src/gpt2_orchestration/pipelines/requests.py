"""The request of a stage, from its form in a pipeline to a start call; and the job that follows, to its end."""

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
from gpt2_orchestration.calls import StartCall
from gpt2_orchestration.client import ServiceClient, ServiceError
from gpt2_orchestration.progress import job_display

ON_INTERRUPT = "GPT2_ON_INTERRUPT"
"""Variable that says what becomes of a job whose component is interrupted: `cancel` (the default) or `leave`."""

_KEY_CHARACTERS = 8


@dataclass(frozen=True, slots=True)
class Input:
    """An artifact that goes into a stage."""

    uri: str
    """Where the service that made it put it."""
    digest: str


def request_json(request: Message) -> str:
    """A request as a component's parameter: the same request gives the same text."""
    content: dict[str, Any] = json_format.MessageToDict(request)
    return json.dumps(content, sort_keys=True)


def run_name(pipeline: str, pipeline_run_id: str) -> str:
    """The run id, in the services' alphabet, of a run of a pipeline."""
    return re.sub(r"[^A-Za-z0-9._-]", "", f"{pipeline}-{pipeline_run_id}")[:100]


def build_request(
    call: StartCall, request: str, inputs: Mapping[str, Input], run_id: str, service_version: str = ""
) -> Message:
    """Builds the request of a start call, with a job id that the same work of the same run has again.

    Args:
        call: The start call.
        request: Its request in JSON, without what comes from other stages.
        inputs: What comes from other stages, by name.
        run_id: The run that the job belongs to, in the services' alphabet.
        service_version: Version of the service that is to do the work.
    """
    message = json_format.Parse(request, call.request())
    for name, item in inputs.items():
        setattr(message, call.inputs[name], item.uri)
    content = [sorted((name, item.digest) for name, item in inputs.items()), request, service_version]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:_KEY_CHARACTERS]
    # Whatever process asks, the stage finds its job again; a failed one gets another attempt.
    options = job_pb2.JobOptions(job_id=f"{run_id}/{call.name}.{key}", run_id=run_id, retry_failed=True)
    message.job.CopyFrom(options)  # type: ignore[attr-defined]
    return message


def run_job(client: ServiceClient, call: StartCall, request: Message) -> job_pb2.Job:
    """Starts a job and follows it to its end.

    When this is interrupted (Ctrl-C, or a runner that ends the task), the job is cancelled; with the variable
    GPT2_ON_INTERRUPT=leave it goes on, and a retry finds it by its id.

    Raises:
        JobFailed: The job ended FAILED or CANCELLED.
        ServiceError: The service refused the call or does not answer.
    """
    job = client.start(call, request)
    try:
        with job_display(call.name) as display:
            return client.follow(job, display.show)
    except ServiceError:
        raise
    except BaseException:
        if os.environ.get(ON_INTERRUPT) != "leave":
            client.cancel(job.job_id, "the pipeline was interrupted")
        raise
