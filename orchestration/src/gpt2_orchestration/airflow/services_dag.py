"""A DAG that calls the services directly, without TFX: a deferrable task for each stage of the same specification."""

from datetime import UTC, datetime
from pathlib import Path

from airflow import DAG

from gpt2_orchestration.airflow.operator import StartCallOperator
from gpt2_orchestration.airflow.parameters import form
from gpt2_orchestration.airflow.settings import AirflowSettings
from gpt2_orchestration.pipelines.graph import pipeline_stages
from gpt2_orchestration.specification import load_specification


def services_dag(path: Path, settings: AirflowSettings, schedule: str | None = None) -> DAG:
    """Builds the DAG of a specification. Arguments and errors as `pipeline_dag`."""
    specification = load_specification(path)
    dag = DAG(
        dag_id=f"{specification.name}-services",
        description="From text in a database to a registered GPT-2, by calls to the services.",
        schedule=schedule,
        start_date=datetime(2026, 1, 1, tzinfo=UTC),
        catchup=False,
        max_active_runs=1,
        params=form(),
        default_args=settings.task_defaults,
        tags=["gpt2"],
    )
    stages = pipeline_stages(specification)
    tasks = {stage.name: StartCallOperator(task_id=stage.name, dag=dag, specification=path) for stage in stages}
    for stage in stages:
        for source in stage.inputs.values():
            tasks[source.stage] >> tasks[stage.name]
    return dag
