"""What a service and the process of an attempt send each other, as JSON: the task, progress, warnings, the outcome.

Both directions of each are here. A child process has them from child_process.py, a TrainJob's pod from its log.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.rpc import status_pb2

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_common.jobs.definition import JobKind
from gpt2_common.jobs.outcome import Cancelled, Failed, Outcome, Succeeded, Suspended


@dataclass(frozen=True, slots=True)
class JobWarning:
    """Something is wrong that does not end the work."""

    text: str


Report = job_pb2.Progress | JobWarning


def encode_task(kind: JobKind, job: job_pb2.Job, request: bytes) -> dict[str, Any]:
    """The work of an attempt. The settings come from the process's own environment."""
    settings, request_type = kind.settings, kind.request
    return {
        "service": job.service,
        "job_id": job.job_id,
        "run_id": job.run_id,
        "attempt": job.attempt,
        "request_digest": job.request_digest,
        "actor": job.actor,
        "function": kind.work.function,
        "settings": f"{settings.__module__}:{settings.__qualname__}",
        "request_type": f"{request_type.__module__}:{request_type.__qualname__}",
        "request": base64.b64encode(request).decode(),
    }


def encode_message(message: Report | Outcome) -> dict[str, Any]:
    """A message of the process: progress, a warning, or its last one, the outcome."""
    match message:
        case job_pb2.Progress():
            return {"progress": base64.b64encode(message.SerializeToString()).decode()}
        case JobWarning(text):
            return {"warning": text}
        case Succeeded(outputs):
            return {"outputs": [json_format.MessageToDict(output) for output in outputs]}
        case Failed(error):
            return {"error": base64.b64encode(error.SerializeToString()).decode()}
        case Cancelled():
            return {"interrupted": "cancelled"}
        case Suspended():
            return {"interrupted": "suspended"}


def decode_message(message: Mapping[str, Any]) -> Report | Outcome:
    """Reads what `encode_message` made. Raises ValueError, KeyError or an error of protobuf."""
    [(kind, content)] = message.items()
    match kind:
        case "progress":
            return job_pb2.Progress.FromString(base64.b64decode(content))
        case "warning":
            return JobWarning(content)
        case "outputs":
            return Succeeded([json_format.ParseDict(item, artifact_pb2.Artifact()) for item in content])
        case "error":
            return Failed(status_pb2.Status.FromString(base64.b64decode(content)))
        case "interrupted":
            return Suspended() if content == "suspended" else Cancelled()
    raise KeyError(kind)
