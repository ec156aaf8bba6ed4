"""The job options of start calls: ids, and the plan of the run's further stages."""

import uuid

from gpt2.jobs.v1 import job_pb2
from gpt2_catalogue import catalogue, default_stage_name
from gpt2_common.errors import InvalidRequest
from gpt2_rules.forms import nearest_name

_MAX_PLAN_BYTES = 256 * 1024

Problems = list[tuple[str, str]]


def require_no_cause(request: object) -> None:
    """Raises InvalidRequest for a call that names an event as its cause.

    Only a service itself may name it: an event that a caller has named would never have its effect.
    """
    options = getattr(request, "job", None)
    if isinstance(options, job_pb2.JobOptions) and options.plan.HasField("cause"):
        raise InvalidRequest([("job.plan.cause", "is set by the services; remove it")])


def job_options_problems(options: job_pb2.JobOptions, kind: str) -> Problems:
    """Returns the violations of job options, except those of the rules of their fields.

    Args:
        options: The options.
        kind: Name of the start call.

    Returns:
        Pairs of field and description.
    """
    return _plan_problems(options, kind) if options.HasField("plan") else []


def complete_options(options: job_pb2.JobOptions, kind: str) -> None:
    """Sets the ids of the run and of its first job where a plan leaves them out."""
    if not options.HasField("plan"):
        return
    if not options.run_id:
        options.run_id = options.job_id.partition("/")[0] or f"run-{uuid.uuid4().hex[:12]}"
    if not options.job_id:
        options.job_id = f"{options.run_id}/{default_stage_name(kind)}"


def stage_name(stage: job_pb2.PlannedStage) -> str:
    """Name of a stage in its run."""
    return stage.name or default_stage_name(stage.start)


def next_job_id(job: job_pb2.Job) -> str:
    """The id of the job of the next stage; the job's plan has one."""
    return f"{job.run_id}/{stage_name(job.plan.stages[0])}"


def _plan_problems(options: job_pb2.JobOptions, kind: str) -> Problems:
    plan = options.plan
    problems: Problems = []
    if plan.ByteSize() > _MAX_PLAN_BYTES:
        problems.append(("job.plan", f"is {plan.ByteSize():,} bytes long: {_MAX_PLAN_BYTES:,} at most"))
    first = options.job_id.partition("/")[2] or default_stage_name(kind)
    names = {options.job_id if "/" not in options.job_id and options.job_id else first}
    for number, stage in enumerate(plan.stages):
        problems += _stage_problems(f"job.plan.stages[{number}]", stage, names)
        names.add(stage_name(stage))
    return problems


def _stage_problems(field: str, stage: job_pb2.PlannedStage, names: set[str]) -> Problems:
    if stage.start not in catalogue().stages:
        near = nearest_name(stage.start, sorted(catalogue().stages))
        return [(f"{field}.start", f"{stage.start!r} is no start call; {near}")]
    problems: Problems = []
    name = stage_name(stage)
    if name in names:
        problems.append((f"{field}.name", f"{name!r} is the name of an earlier stage; rename one"))
    if "job" in stage.request.fields:
        problems.append((f"{field}.request.job", "must not be set: the plan gives a stage its id and run"))
    return problems
