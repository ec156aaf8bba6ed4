"""Corrections of a continued run: changes of the requests of stages that have not succeeded.

The plan of a job that has SUCCEEDED cannot change: its event may be in flight to the service of the next stage, which
starts that with the plan in the event.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from gpt2.jobs.v1 import job_pb2
from gpt2_catalogue import catalogue
from gpt2_common.errors import FailedPrecondition, InvalidRequest
from gpt2_common.identity import current_caller
from gpt2_common.jobs.checks import RequestChecks, merge_violations
from gpt2_common.jobs.creation import request_digest, without_plan
from gpt2_common.jobs.definition import JobKind
from gpt2_common.jobs.options import stage_name
from gpt2_common.jobs.rows import StoredJob, unpack_unparsed, update_job
from gpt2_common.jobs.store import FINAL, REPEATABLE, JobStore, State
from gpt2_rules import Violation
from gpt2_rules.forms import read_form

Corrections = Mapping[str, Mapping[str, Any]]
"""Fields to change in their JSON form, by name of the stage; None removes a field."""

_WHEN = "cancel the run, or wait until the stage has failed; then continue the run with the correction"


@dataclass(frozen=True, slots=True)
class CorrectedJob:
    """A job with a corrected request, or corrected requests of stages in its plan."""

    before: job_pb2.Job
    request: Any
    """The corrected request, with the whole plan."""

    def corrected(self, actor: str) -> job_pb2.Job:
        """Returns the corrected job, with `actor` as its actor."""
        job = job_pb2.Job()
        job.CopyFrom(self.before)
        job.request_digest = request_digest(self.request)
        job.ClearField("inputs")
        job.inputs.extend(catalogue().stages[job.kind].input_artifacts(self.request))
        job.actor = actor
        if job.HasField("plan"):
            job.plan.ClearField("stages")
            job.plan.stages.extend(self.request.job.plan.stages)
        return job


def read_corrections(by_stage: Mapping[str, Struct]) -> Corrections:
    """Reads the corrections of a call. Raises InvalidRequest for a number that JSON does not have."""
    corrections: dict[str, Mapping[str, Any]] = {}
    found: list[Violation] = []
    for stage, fields in by_stage.items():
        try:
            corrections[stage] = _form(fields)
        except (json_format.Error, ValueError) as error:
            found.append((f"corrections.{stage}", f"cannot be read: {error}"))
    if found:
        raise InvalidRequest(found)
    return corrections


def require_correctable(jobs: Sequence[job_pb2.Job], waiting: Sequence[job_pb2.Job], corrections: Corrections) -> None:
    """Raises FailedPrecondition if a stage cannot be corrected.

    Args:
        jobs: The run's jobs in this service.
        waiting: Those whose next stage is not known to have started.
        corrections: The corrections.
    """
    for job in jobs:
        state = State.Name(job.state).removeprefix("STATE_")
        if _stage_name_of(job) in corrections and job.state not in REPEATABLE:
            raise FailedPrecondition(
                f"stage {_stage_name_of(job)} is {state}: a stage can be corrected when it has failed or was cancelled",
                job_id=job.job_id,
            )
        planned = [name for name in map(stage_name, job.plan.stages) if name in corrections]
        if planned and job.state not in FINAL:
            raise FailedPrecondition(
                f"stage {planned[0]} cannot be corrected, as {job.job_id} before it is {state}: {_WHEN}",
                job_id=job.job_id,
            )
    for job in waiting:
        if planned := [name for name in map(stage_name, job.plan.stages) if name in corrections]:
            raise FailedPrecondition(
                f"stage {planned[0]} cannot be corrected, as {job.job_id} has succeeded, and the stage after it "
                f"({stage_name(job.plan.stages[0])}) may start with the plan as it is: {_WHEN}",
                job_id=job.job_id,
            )


async def correct_job(
    kind: JobKind, stored: StoredJob, corrections: Corrections, checks: RequestChecks
) -> CorrectedJob | None:
    """Corrects a job that FAILED or was CANCELLED; returns None if no correction is of it.

    Raises:
        InvalidRequest: A corrected request is invalid; it has all violations, each under the name of its stage.
        FailedPrecondition: The request of the job was never read.
    """
    own = _stage_name_of(stored.job)
    planned = [stage_name(stage) for stage in stored.job.plan.stages]
    if not {own, *planned} & set(corrections):
        return None
    request, form = _read_stored(kind, stored)
    found: list[Violation] = []
    if own in corrections or form is not None:
        changes = corrections.get(own, {})
        request, unread = _merge_request(kind, request, _form_of(request) if form is None else form, changes)
        # As for a stage that starts: artifacts of earlier stages fill the inputs that are empty now.
        if request.job.plan.HasField("cause"):
            made = {artifact.name: artifact.uri for artifact in request.job.plan.artifacts}
            kind.stage.fill_inputs(request, made)
        problems = merge_violations(unread, checks.check_request(kind.name, request))
        found += [(f"{own}.{path}" if path else own, description) for path, description in problems]
    for stage in request.job.plan.stages:
        if stage_name(stage) in corrections:
            merged = _merge(_form(stage.request), corrections[stage_name(stage)])
            stage.request.Clear()
            stage.request.update(merged)
    in_plan, _ = await checks.check_plan(kind.name, request.job)
    for number, name in enumerate(planned):
        prefix = f"job.plan.stages[{number}].request"
        found += [(name + path[len(prefix) :], text) for path, text in in_plan if path.startswith(prefix)]
    if found:
        raise InvalidRequest(found)
    return CorrectedJob(stored.job, request)


def write_corrections(store: JobStore, corrected: Sequence[CorrectedJob]) -> None:
    """Writes all corrections in one transaction, as the current caller's.

    Raises:
        FailedPrecondition: A job was changed since it was read; nothing is corrected.
    """
    actor = current_caller().actor
    with store.engine.begin() as connection:
        for change in corrected:
            content = without_plan(change.request).SerializeToString(deterministic=True)
            if not update_job(connection, change.before, change.corrected(actor), request=content):
                raise FailedPrecondition(
                    f"job {change.before.job_id} was changed meanwhile: nothing is corrected; repeat the call",
                    job_id=change.before.job_id,
                )


def _read_stored(kind: JobKind, stored: StoredJob) -> tuple[Any, dict[str, Any] | None]:
    """Returns the request of a job with its plan, and the JSON form of one that could not be read.

    Raises:
        FailedPrecondition: It could not be read, and was not kept.
    """
    job = stored.job
    unparsed = unpack_unparsed(stored.request)
    if unparsed is None and not stored.request:
        # Services of a version before have not kept it.
        raise FailedPrecondition(
            f"stage {_stage_name_of(job)} cannot be corrected, as its request was never read: start it yourself under "
            "another job_id, with the stages after it as its plan",
            job_id=job.job_id,
        )
    request: Any = kind.request() if unparsed is not None else kind.request.FromString(stored.request)
    if unparsed is not None:
        request.job.job_id, request.job.run_id = job.job_id, job.run_id
    # A request is stored without its plan, which its job has.
    if job.HasField("plan"):
        request.job.plan.CopyFrom(job.plan)
    return request, None if unparsed is None else _form(unparsed)


def _merge_request(
    kind: JobKind, request: Any, form: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[Any, list[Violation]]:
    merged, unread = read_form(_merge(form, changes), kind.request)
    corrected: Any = merged
    corrected.job.CopyFrom(request.job)
    return corrected, unread


def _form_of(request: Any) -> dict[str, Any]:
    form: dict[str, Any] = json_format.MessageToDict(request, preserving_proto_field_name=True)
    form.pop("job", None)
    return form


def _merge(form: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A form with changes: nested messages are merged, null removes a field."""
    merged = dict(form)
    for name, value in changes.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(name), Mapping):
            merged[name] = _merge(merged[name], value)
        else:
            merged[name] = value
    return merged


def _form(struct: Struct) -> dict[str, Any]:
    form: dict[str, Any] = json_format.MessageToDict(struct)
    return form


def _stage_name_of(job: job_pb2.Job) -> str:
    return job.job_id.partition("/")[2] or job.job_id
