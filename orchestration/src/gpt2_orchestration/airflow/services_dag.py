"""A DAG that calls the services directly, without TFX: a deferrable task for each stage of the same specification."""

from pathlib import Path

from airflow import DAG

from gpt2_orchestration.airflow.operator import StartCallOperator
from gpt2_orchestration.airflow.parameters import new_dag
from gpt2_orchestration.airflow.settings import AirflowSettings
from gpt2_orchestration.pipelines.graph import pipeline_stages
from gpt2_orchestration.specification import load_specification


def services_dag(path: Path, settings: AirflowSettings, schedule: str | None = None) -> DAG:
    """Builds the DAG of a specification. Arguments and errors as `pipeline_dag`."""
    specification = load_specification(path)
    description = "From text in a database to a registered GPT-2, by calls to the services."
    dag = new_dag(f"{specification.name}-services", description, settings, schedule)
    stages = pipeline_stages(specification)
    tasks = {stage.name: StartCallOperator(task_id=stage.name, dag=dag, specification=path) for stage in stages}
    for stage in stages:
        for source in stage.inputs.values():
            tasks[source.stage] >> tasks[stage.name]
    return dag
