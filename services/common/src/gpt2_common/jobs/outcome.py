"""How work on a job can end, and the one place where that becomes a state of the job."""

from collections.abc import Sequence
from dataclasses import dataclass

from google.rpc import status_pb2

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_common.errors import JobCancelled
from gpt2_common.status import status_of


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The work is complete."""

    outputs: Sequence[artifact_pb2.Artifact]


@dataclass(frozen=True, slots=True)
class Failed:
    """The work failed, or its process crashed."""

    error: status_pb2.Status


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The work stopped because the job was cancelled."""

    reason: str = ""
    """Who cancelled it, and why; empty where the job has that from its request for cancellation."""


@dataclass(frozen=True, slots=True)
class Suspended:
    """The work stopped before its end, or another replica has it now: the job is to be resumed by another attempt."""


Outcome = Succeeded | Failed | Cancelled | Suspended


def apply_outcome(job: job_pb2.Job, outcome: Outcome) -> None:
    """Moves a job to the state that an outcome means: SUCCEEDED, FAILED, CANCELLED, or back to QUEUED.

    A job whose cancellation was requested ends CANCELLED, unless it has succeeded first.
    """
    if job.cancel_requested and isinstance(outcome, Failed | Suspended):
        outcome = Cancelled()
    match outcome:
        case Suspended():
            job.state = job_pb2.Job.STATE_QUEUED
            return
        case Succeeded(outputs):
            job.state = job_pb2.Job.STATE_SUCCEEDED
            job.ClearField("error")
            job.outputs.extend(outputs)
        case Failed(error):
            job.state = job_pb2.Job.STATE_FAILED
            job.error.CopyFrom(error)
        case Cancelled(reason):
            job.state = job_pb2.Job.STATE_CANCELLED
            if reason or not job.HasField("error"):
                job.error.CopyFrom(status_of(JobCancelled(reason or "cancelled")))
    job.end_time.GetCurrentTime()
