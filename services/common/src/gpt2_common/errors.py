"""The errors that users see: types with a stable reason, a sentence on what happened and one on what to do.

    PipelineError
    ├── InvalidRequest        a field of the request is wrong; carries every violation
    ├── NotFound              what the request names is not there
    ├── AlreadyExists         the id is taken by something else
    ├── FailedPrecondition    the request is right, but not now or not for this
    ├── Unavailable           a server that the work needs does not answer
    ├── ResourceExhausted     disk, memory or a limit is used up
    ├── DataLoss              stored data is not what was written
    ├── Unauthenticated       the call's token is missing or wrong
    └── JobInterrupted        the work was told to stop
        ├── JobCancelled      by CancelJob
        └── JobSuspended      by its service, which is shutting down and will go on with it later

`status.py` maps them to gRPC status codes; nothing else does.
"""

from collections.abc import Sequence

from gpt2_common.escaping import escape_surrogates


class PipelineError(Exception):
    """Base of all errors that are shown to users as they are, with lone surrogates escaped.

    Args:
        message: What happened and what to do about it.
        metadata: The parts of the message that vary, by name.
    """

    reason = "PIPELINE_ERROR"

    def __init__(self, message: str, **metadata: str) -> None:
        self.message = escape_surrogates(message)
        self.metadata = {name: escape_surrogates(value) for name, value in metadata.items()}
        super().__init__(self.message)


class InvalidRequest(PipelineError):
    """Fields of a request are wrong; the request was not acted on.

    Args:
        violations: Pairs of a field's path in the request and what is wrong with it.
    """

    reason = "INVALID_REQUEST"

    def __init__(self, violations: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{field}: {description}" for field, description in violations))
        self.violations = tuple(
            (escape_surrogates(field), escape_surrogates(description)) for field, description in violations
        )


class NotFound(PipelineError):
    """What the request names is not there."""

    reason = "NOT_FOUND"


class AlreadyExists(PipelineError):
    """The id is taken by something else."""

    reason = "ALREADY_EXISTS"


class FailedPrecondition(PipelineError):
    """The request is well formed, but the system is not in a state for it."""

    reason = "FAILED_PRECONDITION"


class Unavailable(PipelineError):
    """A server that the work needs does not answer; the same request can succeed later."""

    reason = "UNAVAILABLE"


class ResourceExhausted(PipelineError):
    """Disk, memory or a configured limit is used up."""

    reason = "RESOURCE_EXHAUSTED"


class DataLoss(PipelineError):
    """Stored data is not what was written."""

    reason = "DATA_LOSS"


class Unauthenticated(PipelineError):
    """The call carries no valid token."""

    reason = "UNAUTHENTICATED"


class JobInterrupted(PipelineError):
    """The work was told to stop."""

    reason = "JOB_INTERRUPTED"


class JobCancelled(JobInterrupted):
    """A caller cancelled the job."""

    reason = "JOB_CANCELLED"


class JobSuspended(JobInterrupted):
    """The service is shutting down; the job goes on when it is back."""

    reason = "JOB_SUSPENDED"
