"""Jobs as text: state, progress, warnings and errors, with the command that corrects a failed request.

It imports no terminal library, so that short commands start at once; `progress.py` draws a job in a terminal.
"""

from google.rpc import code_pb2, error_details_pb2

from gpt2.jobs.v1 import job_pb2
from gpt2_contracts.metrics import LOSS, VALIDATION_LOSS

FINAL_STATES = (job_pb2.Job.STATE_SUCCEEDED, job_pb2.Job.STATE_FAILED, job_pb2.Job.STATE_CANCELLED)
UNFINISHED_STATES = (job_pb2.Job.STATE_QUEUED, job_pb2.Job.STATE_RUNNING)

_CORRECTABLE = (code_pb2.INVALID_ARGUMENT, code_pb2.FAILED_PRECONDITION, code_pb2.NOT_FOUND)
_SHOWN = (LOSS, VALIDATION_LOSS)
"""Metrics that are shown; TensorBoard shows all."""


def state_name(state: job_pb2.Job.State.ValueType) -> str:
    """A state as a word, such as `running`."""
    return job_pb2.Job.State.Name(state).removeprefix("STATE_").lower()


def describe(job: job_pb2.Job) -> str:
    """Progress in one line: phase, amount, rate, time left, metrics."""
    now = job.progress
    state = state_name(job.state)
    if job.state != job_pb2.Job.STATE_RUNNING:
        return state
    parts = [now.phase or state]
    if now.total:
        parts.append(f"{now.done:,.0f}/{now.total:,.0f} {now.unit}")
    elif now.done:
        parts.append(f"{now.done:,.0f} {now.unit}")
    if now.rate > 0:
        parts.append(f"{now.rate:,.1f}/s")
        if now.total > now.done:
            parts.append(f"{duration((now.total - now.done) / now.rate)} left")
    parts += [f"{name.replace('_', ' ')} {now.metrics[name]:.4g}" for name in _SHOWN if name in now.metrics]
    return "  ".join(parts)


def warning_line(stage: str, text: str) -> str:
    """One warning of a job, as a line."""
    return f"{stage:<16} WARNING: {text}"


def duration(seconds: float) -> str:
    """A time span as text: `45s`, `3m20s`, `2h05m`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def error_text(job: job_pb2.Job) -> str:
    """A job's error, with the command that corrects its request where the request is the cause."""
    message: str = job.error.message
    if job.state != job_pb2.Job.STATE_FAILED or job.error.code not in _CORRECTABLE or not job.HasField("plan"):
        return message
    stage = stage_of(job.job_id).replace("-", "_")
    correction = f"gpt2 runs continue {job.run_id} --set {stage}.{_wrong_field(job) or 'FIELD'}=VALUE"
    return f"{message}; correct it with `{correction}`"


def stage_of(job_id: str) -> str:
    """Name of a job's stage in its run."""
    return job_id.rpartition("/")[2]


def _wrong_field(job: job_pb2.Job) -> str:
    """The first field that the error names; empty where it names none."""
    violations = error_details_pb2.BadRequest()
    for detail in job.error.details:
        if detail.Is(violations.DESCRIPTOR):
            detail.Unpack(violations)
    return violations.field_violations[0].field if violations.field_violations else ""
