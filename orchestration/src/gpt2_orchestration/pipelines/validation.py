"""Validation of all stages of a run by their services, before the first one starts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc

from gpt2_catalogue import Stage, catalogue
from gpt2_orchestration.client.field_errors import FieldError
from gpt2_orchestration.client.service_client import ClientSettings, ServiceClient
from gpt2_orchestration.client.services import open_services
from gpt2_orchestration.pipelines.graph import PipelineStage
from gpt2_orchestration.pipelines.request_fields import form_struct, section_name
from gpt2_orchestration.pipelines.specification import (
    PipelineSpecification,
    SpecificationError,
    parse_specification,
    read_content,
    sections,
)

_CALL_SECONDS = 1.0
"""Deadline of calls that only add to errors that are known already."""


def load_with_services(path: Path, overrides: Mapping[str, Any], settings: ClientSettings) -> PipelineSpecification:
    """Reads a specification; if it is invalid, errors that available services find are added.

    Args:
        path: The file.
        overrides: Values that replace the file's, by dotted path.
        settings: Addresses of the services. They are not called for a file that is valid: see `validate_stages`.

    Raises:
        SpecificationError: The file or an override is invalid.
    """
    content = read_content(path, overrides)
    try:
        return parse_specification(content, str(path))
    except SpecificationError as error:
        written = content if isinstance(content, Mapping) else {}
        forms = [(stage, written[name]) for name, stage in sections().items() if name in written]
        raise SpecificationError(add_errors_of_services(error.errors, forms, settings), str(path)) from None


def add_errors_of_services(
    errors: Sequence[FieldError], forms: Iterable[tuple[Stage, Any]], settings: ClientSettings
) -> list[FieldError]:
    """Adds the errors that available services find in requests, at other paths than the known ones.

    Args:
        errors: Errors by the rules in the protos.
        forms: Stages, and the request of each as written; what is not a mapping is ignored.
        settings: Where the services are.
    """
    # Missing artifacts are among the known errors.
    artifacts = sorted({name for stage in catalogue().stages.values() for name in stage.output_names})
    readable = [(stage, form_struct(form or {})) for stage, form in forms if isinstance(form, Mapping | None)]

    def ask(client: ServiceClient) -> list[FieldError]:
        return [
            error.under(section_name(stage))
            for stage, form in readable
            if stage.service == client.service
            for error in client.validate_stage(stage.name, form, artifacts)
        ]

    with open_services(settings, _CALL_SECONDS) as services:
        found = services.ask(ask).found
    known = {field_error.path for field_error in errors}
    return [
        *errors,
        *(field_error for service in found.values() for field_error in service if field_error.path not in known),
    ]


def validate_stages(stages: Sequence[PipelineStage], settings: ClientSettings, subject: str = "") -> list[str]:
    """Has each service validate its stages, concurrently. Nothing is started.

    Args:
        stages: All stages of a run.
        settings: Where the services are.
        subject: Source of the stages, such as a file, for error messages.

    Returns:
        Warnings about services that cannot validate.

    Raises:
        SpecificationError: Requests are invalid; it has all errors of all stages.
        ServiceError: A service does not answer.
    """
    with open_services(settings) as services:
        answers = services.ask(lambda client: list(_errors(client, stages)))
    for error in answers.errors.values():
        if error.code != grpc.StatusCode.UNIMPLEMENTED:
            raise error
    errors = [field_error for service in services.clients for field_error in answers.found.get(service, ())]
    if errors:
        raise SpecificationError(errors, subject)
    return [
        f"the {service} is too old to validate stages in advance, so that errors in its requests appear when its stage "
        "starts: update it"
        for service in answers.errors
    ]


def _errors(client: ServiceClient, stages: Sequence[PipelineStage]) -> Iterator[FieldError]:
    """Errors that a service finds in its stages. Raises ServiceError."""
    for stage in stages:
        if stage.declaration.service == client.service:
            artifacts = [source.output for source in stage.inputs.values()]
            for error in client.validate_stage(stage.name, stage.request, artifacts):
                yield error.under(section_name(stage.declaration))
