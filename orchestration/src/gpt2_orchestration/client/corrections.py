"""Corrections (`STAGE.FIELD=VALUE`) of a run with a plan: validated by all services, then applied.

A service knows only its own jobs, so the names of a run's stages are resolved here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import grpc

from gpt2.jobs.v1 import job_pb2, jobs_service_pb2
from gpt2_catalogue import catalogue, default_stage_name
from gpt2_orchestration.client.field_errors import FieldError, nearest_name
from gpt2_orchestration.client.jobs import stage_of
from gpt2_orchestration.client.runs import Run, show_run
from gpt2_orchestration.client.service_client import ClientSettings, ServiceClient, ServiceError
from gpt2_orchestration.client.services import Answers, open_services
from gpt2_orchestration.pipelines.request_fields import form_struct
from gpt2_orchestration.pipelines.specification import SpecificationError, parse_overrides
from gpt2_rules.forms import read_form

Corrections = Mapping[str, Mapping[str, Any]]
"""Fields by stage, in JSON form; None clears a field."""


def read_corrections(assignments: Sequence[str]) -> Corrections:
    """Reads `STAGE.FIELD=VALUE` assignments, each value as YAML. Raises SpecificationError."""
    corrections: dict[str, dict[str, Any]] = {}
    errors = []
    for path, value in parse_overrides(assignments).items():
        stage, *names = path.split(".")
        if not names:
            errors.append(
                FieldError(f"--set {path}", "names no field; write STAGE.FIELD, such as register_model.label")
            )
            continue
        place = corrections.setdefault(stage, {})
        for parent in names[:-1]:
            if not isinstance(place.get(parent), dict):
                place[parent] = {}
            place = place[parent]
        place[names[-1]] = value
    if errors:
        raise SpecificationError(errors)
    return corrections


def continue_corrected(
    settings: ClientSettings, run_id: str, corrections: Corrections
) -> jobs_service_pb2.ContinueRunResponse:
    """Resumes a run with corrections: all services accept them, or none changes anything.

    Args:
        settings: Where the services are.
        run_id: The run.
        corrections: What to change, by stage; names may be written with `_` for `-`.

    Returns:
        The jobs that all services requeued or republished.

    Raises:
        SpecificationError: A correction is invalid; the run is unchanged.
        ServiceError: A service does not answer, or there is no such run, or it has no plan.
    """
    run = show_run(settings, run_id)
    changes = {stage: form_struct(fields) for stage, fields in _resolve(run, corrections).items()}
    with open_services(settings) as services:
        _require_support(services.ask(_supports_corrections))
        _require_agreement(run_id, services.ask(lambda client: client.continue_run(run_id, changes, True)))
        answers = services.ask(lambda client: client.continue_run(run_id, changes))
    for service, error in answers.errors.items():
        taken = ", ".join(answers.found) or "none"
        message = (
            f"{error}; services that applied the corrections: {taken}. Repeat the command when the {service} answers"
        )
        raise ServiceError(message, error.code)
    merged = jobs_service_pb2.ContinueRunResponse()
    for answer in answers.found.values():
        merged.MergeFrom(answer)
    return merged


def _resolve(run: Run, corrections: Corrections) -> Corrections:
    """The corrections by the names of the run's stages. Raises SpecificationError, ServiceError."""
    if not any(job.HasField("plan") for job in run.jobs):
        raise ServiceError(
            f"run {run.run_id} has no plan: a pipeline runner drives it. "
            "Run the pipeline again with the correction (`gpt2 run FILE --set STAGE.FIELD=VALUE`); "
            "stages that have succeeded come from its cache",
            grpc.StatusCode.FAILED_PRECONDITION,
        )
    starts = {stage_of(job.job_id): job.kind for job in run.jobs}
    # Of all plans, as the last job can be one without a plan that was added to the run.
    starts |= {
        stage.name or default_stage_name(stage.start): stage.start for job in run.jobs for stage in job.plan.stages
    }
    succeeded = {stage_of(job.job_id) for job in run.jobs if job.state == job_pb2.Job.STATE_SUCCEEDED}
    open_stages = [name for name in starts if name not in succeeded]
    errors: list[FieldError] = []
    resolved: dict[str, Mapping[str, Any]] = {}
    names: dict[str, str] = {}
    for written, fields in corrections.items():
        name = written if written in starts else written.replace("_", "-")
        if name not in starts:
            errors.append(
                FieldError(written, f"is not a stage of run {run.run_id}; {nearest_name(name, list(starts))}")
            )
        elif name in names:
            errors.append(FieldError(written, f"names the same stage as {names[name]}; use one of them"))
        elif name in succeeded:
            left = f"stages that can be corrected: {', '.join(open_stages)}" if open_stages else "so have all others"
            errors.append(FieldError(written, f"has succeeded and cannot be corrected; {left}"))
        else:
            stage = catalogue().stages.get(starts[name])
            unread = read_form(fields, stage.request)[1] if stage else []
            errors += [FieldError(path, problem).under(written) for path, problem in unread]
            resolved[name] = fields
            names[name] = written
    if errors:
        raise SpecificationError(errors)
    return resolved


def _supports_corrections(client: ServiceClient) -> None:
    """Raises ServiceError (UNIMPLEMENTED) where a service is too old to apply corrections."""
    stage = next(stage for stage in catalogue().stages.values() if stage.service == client.service)
    client.validate_stage(stage.name, stage.request(), [item.name for item in stage.inputs])


def _require_support(answers: Answers[None]) -> None:
    for service, error in answers.errors.items():
        if error.code != grpc.StatusCode.UNIMPLEMENTED:
            raise error
        raise ServiceError(f"the {service} is too old for corrections: update it", error.code)


def _require_agreement(run_id: str, answers: Answers[Any]) -> None:
    """Raises SpecificationError with all violations that services report, or a ServiceError."""
    errors: list[FieldError] = []
    for error in answers.errors.values():
        if not error.field_errors:
            raise error
        errors += [field_error for field_error in error.field_errors if field_error not in errors]
    if errors:
        raise SpecificationError(errors, f"run {run_id}")
