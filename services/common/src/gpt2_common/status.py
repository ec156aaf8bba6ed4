"""The one place where errors become gRPC statuses.

The wire carries `google.rpc.Status` with `google.rpc.ErrorInfo` (a stable reason and the parts of the message that
vary) and, for bad requests, `google.rpc.BadRequest`. An exception that is not ours is a bug: INTERNAL, without details.
"""

import errno
import os
import re
from collections.abc import Mapping

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from gpt2_common import errors

# By their names: a job's process, which has no database, would take as long to import SQLAlchemy as all else together.
_DATABASE_AWAY = frozenset({"OperationalError", "InterfaceError", "TimeoutError"})

ERROR_DOMAIN = "gpt2-pipeline"

# Texts of NumPy, safetensors, tokenizers, TensorFlow and SQLite for a full disk, in exceptions without an errno.
_DISK_FULL = re.compile(
    r"no space left on device|disk quota exceeded|os error (28|122)\b|\d+ requested and \d+ written|disk is full",
    re.IGNORECASE,
)

_NOT_WRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

WRITABLE_ADVICE = (
    f"make it writable for the service's user (uid {os.getuid()}): by fsGroup in Kubernetes; where the volume's driver "
    "ignores fsGroup, as many of ReadWriteMany volumes do, by its mount options or `chown` on the volume"
)
"""What to do where the volume of the artifact root refuses a write."""

CODE_BY_ERROR: Mapping[type[errors.PipelineError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.DataLoss: grpc.StatusCode.DATA_LOSS,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.JobInterrupted: grpc.StatusCode.CANCELLED,
}


def status_of(error: BaseException) -> status_pb2.Status:
    """Describes an exception for callers.

    Returns:
        A status whose message a user can act on. For other exceptions INTERNAL, with the exception's type alone, as its
        text may hold what callers must not see.
    """
    known = _as_pipeline_error(error)
    if known is None:
        return status_pb2.Status(
            code=_number(grpc.StatusCode.INTERNAL),
            message=f"internal error ({type(error).__name__}): this is a bug; the service's log has the details",
        )
    code = next(code for kind, code in CODE_BY_ERROR.items() if isinstance(known, kind))
    status = status_pb2.Status(code=_number(code), message=known.message)
    info = error_details_pb2.ErrorInfo(reason=known.reason, domain=ERROR_DOMAIN, metadata=known.metadata)
    status.details.append(_pack(info))
    if isinstance(known, errors.InvalidRequest):
        bad_request = error_details_pb2.BadRequest()
        for field, description in known.violations:
            bad_request.field_violations.add(field=field, description=description)
        status.details.append(_pack(bad_request))
    return status


def is_expected(error: BaseException) -> bool:
    """Whether an exception is shown to users, rather than a bug."""
    return _as_pipeline_error(error) is not None


def code_of(status: status_pb2.Status) -> grpc.StatusCode:
    """The gRPC status code of a status."""
    return next(code for code in grpc.StatusCode if _number(code) == status.code)


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception means that the disk or its quota is full, whichever library raised it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return _DISK_FULL.search(str(error)) is not None


def _as_pipeline_error(error: BaseException) -> errors.PipelineError | None:
    if isinstance(error, errors.PipelineError):
        return error
    if is_disk_full(error):
        # Of a copy the second name is the one that was written to.
        name = (error.filename2 or error.filename) if isinstance(error, OSError) else None
        where = f" at {name}" if name else ""
        return errors.ResourceExhausted(f"no space left on the disk{where}: free some and retry the job")
    if isinstance(error, OSError) and error.errno in _NOT_WRITABLE and error.filename is not None:
        name = error.filename2 or error.filename
        return errors.FailedPrecondition(f"{os.fsdecode(name)}: {error.strerror}; {WRITABLE_ADVICE}")
    if any(kind.__module__ == "sqlalchemy.exc" and kind.__name__ in _DATABASE_AWAY for kind in type(error).__mro__):
        return errors.Unavailable("the service's database is unavailable: retry; the service's log has the reason")
    if isinstance(error, MemoryError):
        return errors.ResourceExhausted("not enough memory: choose smaller sizes or give the service more, and retry")
    return None


def _number(code: grpc.StatusCode) -> int:
    number: int = code.value[0]
    return number


def _pack(message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
