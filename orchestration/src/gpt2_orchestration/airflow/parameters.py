"""What every DAG is made with, and its trigger form: which values of a specification a run may replace."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from airflow import DAG
from airflow.exceptions import AirflowFailException
from airflow.models.param import Param

from gpt2_orchestration.airflow.settings import AirflowSettings
from gpt2_orchestration.specification import PipelineSpecification, SpecificationError, load_specification

_FORM: Mapping[str, tuple[str, dict[str, Any]]] = {
    "steps": ("train_model.config.steps", {"type": ["null", "integer"], "minimum": 1}),
    "batch_size": ("train_model.config.batch_size", {"type": ["null", "integer"], "minimum": 1}),
    "learning_rate": ("train_model.config.learning_rate", {"type": ["null", "number"], "exclusiveMinimum": 0}),
    "model_name": ("register_model.model_name", {"type": ["null", "string"], "minLength": 1}),
    "label": ("register_model.label", {"type": ["null", "string"], "minLength": 1}),
}
"""Fields of the form: what each replaces, and its JSON schema. Null leaves the file's value."""


def new_dag(dag_id: str, description: str, settings: AirflowSettings, schedule: str | None, *tags: str) -> DAG:
    """A DAG without its tasks: one run at a time, none for times that have passed."""
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
        name: Param(None, description=f"Replaces {path} of the file.", **schema)
        for name, (path, schema) in _FORM.items()
    }
    fields["overrides"] = Param(
        {}, type="object", description="Further values, by dotted path, such as train_model.config.seed."
    )
    return fields


def specification_of_run(path: Path, params: Mapping[str, Any]) -> PipelineSpecification:
    """The specification with what the form says. Raises AirflowFailException (no retry) when it is wrong."""
    replaced = {target: params[name] for name, (target, _) in _FORM.items() if params.get(name) is not None}
    try:
        return load_specification(path, {**params.get("overrides", {}), **replaced})
    except SpecificationError as error:
        raise AirflowFailException(str(error)) from error
