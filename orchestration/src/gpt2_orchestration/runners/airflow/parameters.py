"""Common parts of the DAGs, with their trigger form: values of a specification that a run can override."""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from airflow import DAG
from airflow.exceptions import AirflowFailException
from airflow.models.param import Param
from google.protobuf.descriptor import FieldDescriptor

from gpt2_orchestration.client.service_client import ClientSettings
from gpt2_orchestration.pipelines.request_fields import find_field
from gpt2_orchestration.pipelines.specification import (
    PipelineSpecification,
    SpecificationError,
    load_specification,
    sections,
)
from gpt2_orchestration.pipelines.validation import validate_stages
from gpt2_orchestration.runners.airflow.settings import AirflowSettings
from gpt2_rules.reading import rules_of

_log = logging.getLogger(__name__)

_FORM: Mapping[str, str] = {
    "steps": "train_model.config.steps",
    "batch_size": "train_model.config.batch_size",
    "learning_rate": "train_model.config.learning_rate",
    "model_name": "register_model.model_name",
    "label": "register_model.label",
}
"""Fields of the form and the path that each overrides. Null keeps the file's value."""

_TYPES = {
    FieldDescriptor.CPPTYPE_INT32: "integer",
    FieldDescriptor.CPPTYPE_INT64: "integer",
    FieldDescriptor.CPPTYPE_DOUBLE: "number",
    FieldDescriptor.CPPTYPE_STRING: "string",
}
_Bound = Literal["minimum", "exclusive_minimum", "maximum", "exclusive_maximum"]
_BOUNDS: Mapping[_Bound, str] = {
    "minimum": "minimum",
    "exclusive_minimum": "exclusiveMinimum",
    "maximum": "maximum",
    "exclusive_maximum": "exclusiveMaximum",
}


def new_dag(dag_id: str, description: str, settings: AirflowSettings, schedule: str | None, *tags: str) -> DAG:
    """A DAG without tasks: one active run, no catch-up."""
    return DAG(
        dag_id=dag_id,
        description=description,
        schedule=schedule,
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        params=form(),
        default_args=settings.task_defaults,
        tags=["gpt2", *tags],
    )


def form() -> dict[str, Param]:
    """The fields of the form, for `DAG(params=...)`."""
    fields = {
        name: Param(None, description=f"Overrides {path} of the file.", **_schema(path)) for name, path in _FORM.items()
    }
    fields["overrides"] = Param(
        {}, type="object", description="Further values, by dotted path, such as train_model.config.seed."
    )
    return fields


def _schema(path: str) -> dict[str, Any]:
    """The JSON schema of a value of a specification."""
    section, _, field = path.partition(".")
    return field_schema(find_field(sections()[section], field))


def field_schema(field: FieldDescriptor) -> dict[str, Any]:
    """JSON schema of a field that is a number or a string; null is also allowed."""
    rules = rules_of(field)
    schema: dict[str, Any] = {"type": ["null", _TYPES[field.cpp_type]]}
    for ours, theirs in _BOUNDS.items():
        if rules.number.HasField(ours):
            bound = getattr(rules.number, ours)
            schema[theirs] = int(bound) if bound.is_integer() else bound
    if schema["type"][1] == "string":
        schema["minLength"] = 1
        if rules.text.HasField("max_length"):
            schema["maxLength"] = rules.text.max_length
        if rules.text.pattern:
            schema["pattern"] = f"^(?:{rules.text.pattern})$"
    return schema


def specification_of_run(path: Path, params: Mapping[str, Any]) -> PipelineSpecification:
    """The specification with the form's values. Raises AirflowFailException (no retry) when it is invalid."""
    replaced = {target: params[name] for name, target in _FORM.items() if params.get(name) is not None}
    try:
        return load_specification(path, {**params.get("overrides", {}), **replaced})
    except SpecificationError as error:
        raise AirflowFailException(str(error)) from error


def validate_run(path: Path, specification: PipelineSpecification) -> None:
    """Has the services validate all stages of a run before the first one starts.

    Raises:
        AirflowFailException: Requests are invalid, so that a retry would fail too.
        ServiceError: A service does not answer.
    """
    try:
        for warning in validate_stages(specification.stages(), ClientSettings.from_environment(), str(path)):
            _log.warning("%s", warning)
    except SpecificationError as error:
        raise AirflowFailException(str(error)) from error
