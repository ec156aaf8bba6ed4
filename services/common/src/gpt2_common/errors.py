"""The errors that users see: types with a stable reason, a sentence on what happened and one on what to do.

    PipelineError
    ├── InvalidRequest        a field of the request is wrong; carries every violation
    ├── NotFound              what the request names is not there
    ├── AlreadyExists         the id is taken by something else
    ├── FailedPrecondition    the request is right, but not now or not for this
    ├── Unavailable           a server that the work needs is unavailable
    │   └── PeerUnavailable   another service of the pipeline does not, or has no address
    ├── ResourceExhausted     disk, memory or a limit is used up
    ├── DataLoss              stored data is not what was written
    ├── Unauthenticated       the call does not prove who calls
    ├── PermissionDenied      the one who calls may not do this
    └── JobInterrupted        the work has to stop
        ├── JobCancelled      its cancellation was requested
        ├── JobSuspended      its service shuts down; the job is resumed later
        └── JobSuperseded     a later attempt of it has begun

`status.py` maps them to gRPC status codes; nothing else does.
"""

from collections.abc import Callable, Sequence

from gpt2_common.escaping import escape_surrogates

# gRPC clients refuse answers with more than 8 KiB of metadata, which hold an error's text three times.
_MAX_VIOLATIONS_BYTES = 2000
_VIOLATION_BYTES = 12


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
        shown = _fitting([(escape_surrogates(field), escape_surrogates(text)) for field, text in violations])
        super().__init__("; ".join(f"{field}: {description}" if field else description for field, description in shown))
        self.violations = tuple(shown)


def violations_of(check: Callable[[], object]) -> list[tuple[str, str]]:
    """Returns the violations of the InvalidRequest that a function raises; none when it returns."""
    try:
        check()
    except InvalidRequest as error:
        return list(error.violations)
    return []


def _fitting(violations: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The first violations, as many as clients take in the metadata of an answer, and how many more there are."""
    shown: list[tuple[str, str]] = []
    size = 0
    for field, description in violations:
        size += len(f"{field}{description}".encode()) + _VIOLATION_BYTES
        if shown and size > _MAX_VIOLATIONS_BYTES:
            return [*shown, ("", f"and {len(violations) - len(shown)} more: correct these first")]
        shown.append((field, description))
    return shown


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


class PeerUnavailable(Unavailable):
    """Another service of the pipeline does not answer, or its address is not configured."""


class ResourceExhausted(PipelineError):
    """Disk, memory or a configured limit is used up."""

    reason = "RESOURCE_EXHAUSTED"


class DataLoss(PipelineError):
    """Stored data is not what was written."""

    reason = "DATA_LOSS"


class Unauthenticated(PipelineError):
    """The call does not prove who calls."""

    reason = "UNAUTHENTICATED"


class PermissionDenied(PipelineError):
    """The one who calls is known, and may not do this."""

    reason = "PERMISSION_DENIED"


class JobInterrupted(PipelineError):
    """The work has to stop."""

    reason = "JOB_INTERRUPTED"


class JobCancelled(JobInterrupted):
    """A caller cancelled the job."""

    reason = "JOB_CANCELLED"


class JobSuspended(JobInterrupted):
    """The service shuts down; the job is resumed after its restart."""

    reason = "JOB_SUSPENDED"


class JobSuperseded(JobInterrupted):
    """A later attempt of the job has begun: this one may write nothing more."""

    reason = "JOB_SUPERSEDED"
