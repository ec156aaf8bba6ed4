"""The options that every start call takes: ids, and the plan of what is to follow."""

import re
import uuid
from functools import cache

from google.protobuf.descriptor import FileDescriptor

from gpt2.exporter.v1 import exporter_service_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2.registry.v1 import registry_service_pb2
from gpt2.tokenizer.v1 import tokenizer_service_pb2
from gpt2.trainer.v1 import trainer_service_pb2
from gpt2_common.errors import InvalidRequest

JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SERVICES: tuple[FileDescriptor, ...] = (
    exporter_service_pb2.DESCRIPTOR,
    tokenizer_service_pb2.DESCRIPTOR,
    trainer_service_pb2.DESCRIPTOR,
    registry_service_pb2.DESCRIPTOR,
)
_MOST_STAGES = 32
_LARGEST_PLAN = 256 * 1024
_LONGEST_STAGE_NAME = 99

Problems = list[tuple[str, str]]


def require_no_cause(request: object) -> None:
    """Refuses a call that names the event it comes from. Raises InvalidRequest.

    Only a service itself may say so: an event that a caller has named would never have its effect.
    """
    options = getattr(request, "job", None)
    if isinstance(options, job_pb2.JobOptions) and options.plan.HasField("cause"):
        raise InvalidRequest([("job.plan.cause", "is set by the services: leave it out")])


def job_options_problems(options: job_pb2.JobOptions, kind: str) -> Problems:
    """What is wrong with a request's job options.

    Args:
        options: The options.
        kind: Name of the start call.

    Returns:
        Pairs of field and description.
    """
    problems: Problems = []
    if options.job_id and not (len(options.job_id) <= 200 and JOB_ID.fullmatch(options.job_id)):
        problems.append(
            (
                "job.job_id",
                "must be letters, digits, '.', '_' and '-' in at most two parts joined by '/', 200 characters at most",
            )
        )
    if options.run_id and not (len(options.run_id) <= 100 and RUN_ID.fullmatch(options.run_id)):
        problems.append(("job.run_id", "must be letters, digits, '.', '_' and '-', 100 characters at most"))
    return problems + (_plan_problems(options, kind) if options.HasField("plan") else [])


def complete_options(options: job_pb2.JobOptions, kind: str) -> None:
    """Names the run and the first job of a plan that has not named them."""
    if not options.HasField("plan"):
        return
    if not options.run_id:
        options.run_id = options.job_id.partition("/")[0] or f"run-{uuid.uuid4().hex[:12]}"
    if not options.job_id:
        options.job_id = f"{options.run_id}/{default_name(kind)}"


def stage_name(stage: job_pb2.PlannedStage) -> str:
    """What a stage is called in its run."""
    return stage.name or default_name(stage.start)


def default_name(start: str) -> str:
    """A start call's name in lower case with dashes: `TrainModel` is `train-model`."""
    return re.sub(r"(?<=.)([A-Z])", r"-\1", start).lower()


@cache
def start_calls() -> frozenset[str]:
    """Names of the start calls of all services: those that answer with a job."""
    methods = [method for file in _SERVICES for service in file.services_by_name.values() for method in service.methods]
    job = job_pb2.Job.DESCRIPTOR
    return frozenset(
        method.name
        for method in methods
        if "job" in method.output_type.fields_by_name and method.output_type.fields_by_name["job"].message_type is job
    )


def _plan_problems(options: job_pb2.JobOptions, kind: str) -> Problems:
    plan = options.plan
    problems: Problems = []
    if plan.ByteSize() > _LARGEST_PLAN:
        problems.append(("job.plan", f"is {plan.ByteSize():,} bytes long: {_LARGEST_PLAN:,} at most"))
    if len(plan.stages) > _MOST_STAGES:
        problems.append(("job.plan.stages", f"are {len(plan.stages)}: {_MOST_STAGES} at most"))
    first = options.job_id.partition("/")[2] or default_name(kind)
    names = {options.job_id if "/" not in options.job_id and options.job_id else first}
    for number, stage in enumerate(plan.stages):
        problems += _stage_problems(f"job.plan.stages[{number}]", stage, names)
        names.add(stage_name(stage))
    return problems


def _stage_problems(field: str, stage: job_pb2.PlannedStage, names: set[str]) -> Problems:
    if stage.start not in start_calls():
        known = ", ".join(sorted(start_calls()))
        return [(f"{field}.start", f"{stage.start!r} is no start call: use one of {known}")]
    problems: Problems = []
    name = stage_name(stage)
    if len(name) > _LONGEST_STAGE_NAME or not RUN_ID.fullmatch(name):
        problems.append((f"{field}.name", "must be letters, digits, '.', '_' and '-', 99 characters at most"))
    if name in names:
        problems.append((f"{field}.name", f"{name!r} is taken by a stage before: give each its own"))
    if "job" in stage.request.fields:
        problems.append((f"{field}.request.job", "must not be there: the plan gives a stage its id and run"))
    return problems
