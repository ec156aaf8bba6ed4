"""One attempt of one job, wherever it runs: what it is given, what is heard of it, how it ends."""

import base64
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf import json_format
from google.rpc import code_pb2, status_pb2

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_common.jobs.definition import JobKind
from gpt2_common.jobs.rows import StoredJob


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The work ended well."""

    outputs: Sequence[artifact_pb2.Artifact]


@dataclass(frozen=True, slots=True)
class Failed:
    """The work ended badly, or its process died."""

    error: status_pb2.Status


@dataclass(frozen=True, slots=True)
class Suspended:
    """The work stopped, or is no longer followed here, to be taken up again."""


@dataclass(frozen=True, slots=True)
class Warned:
    """The work goes on, and something about it is wrong."""

    text: str


Report = job_pb2.Progress | Warned
Outcome = Succeeded | Failed | Suspended
ReportSink = Callable[[Report], Awaitable[None]]


class Attempt(Protocol):
    """One attempt. `run` is called once; the others at any time, also before it."""

    async def run(self, grace_seconds: float) -> Outcome:
        """Runs the attempt to its end; `grace_seconds` is the time between being told to stop and being killed."""

    async def cancel(self) -> None:
        """Tells the work to stop for good."""

    async def suspend(self) -> None:
        """Says that the service stops: `run` is to return soon, and another attempt goes on."""

    async def keep(self) -> None:
        """Says that the job is still this replica's."""

    def abandon(self) -> None:
        """Says that another replica has the job now."""


Launcher = Callable[[JobKind, StoredJob, ReportSink], Attempt]
"""Makes the attempt of a job that is about to run."""


def describe_task(kind: JobKind, stored: StoredJob) -> dict[str, Any]:
    """What a worker is told of its job, as JSON: see worker.py. The settings come from its own environment."""
    job, settings, request = stored.job, kind.settings, kind.request
    return {
        "service": job.service,
        "job_id": job.job_id,
        "run_id": job.run_id,
        "attempt": job.attempt,
        "request_digest": job.request_digest,
        "function": kind.function,
        "settings": f"{settings.__module__}:{settings.__qualname__}",
        "request_type": f"{request.__module__}:{request.__qualname__}",
        "request": base64.b64encode(stored.request).decode(),
    }


def read_message(message: Mapping[str, Any]) -> Report | Outcome:
    """Reads one message of a worker: progress, a warning, or how the work has ended."""
    if "progress" in message:
        return job_pb2.Progress.FromString(base64.b64decode(message["progress"]))
    if "warning" in message:
        return Warned(message["warning"])
    if "outputs" in message:
        return Succeeded([json_format.ParseDict(item, artifact_pb2.Artifact()) for item in message["outputs"]])
    if "error" in message:
        return Failed(status_pb2.Status.FromString(base64.b64decode(message["error"])))
    return Suspended() if message["interrupted"] == "suspended" else cancelled()


def cancelled() -> Failed:
    """The end of work that was cancelled."""
    return Failed(status_pb2.Status(code=code_pb2.CANCELLED, message="cancelled"))
