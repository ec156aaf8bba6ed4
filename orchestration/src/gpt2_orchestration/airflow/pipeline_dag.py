"""A DAG that runs a pipeline through TFX: one task a component, with TFX's cache and ML Metadata."""

from pathlib import Path
from typing import Any

from airflow import DAG
from airflow.operators.python import PythonOperator

from gpt2_orchestration.airflow.parameters import new_dag, specification_of_run
from gpt2_orchestration.airflow.settings import AirflowSettings
from gpt2_orchestration.client import ClientSettings
from gpt2_orchestration.pipelines.graph import pipeline_stages
from gpt2_orchestration.pipelines.settings import PipelineSettings, ServiceFacts, ask_services
from gpt2_orchestration.specification import load_specification

_ASK = "AskServices"


def pipeline_dag(path: Path, settings: AirflowSettings, schedule: str | None = None) -> DAG:
    """Builds the DAG of a specification. Reads the file, and asks nobody.

    Args:
        path: The specification.
        settings: Where things are.
        schedule: When to run it, as a cron expression or a preset; None: when it is triggered.

    Raises:
        SpecificationError: The file is wrong.
    """
    specification = load_specification(path)
    description = "From text in a database to a registered GPT-2, through TFX."
    dag = new_dag(specification.name, description, settings, schedule, "tfx")
    ask = PythonOperator(task_id=_ASK, dag=dag, python_callable=_AskServices(path))
    tasks = {
        stage.name: PythonOperator(task_id=stage.name, dag=dag, python_callable=_RunStage(path, stage.name, settings))
        for stage in pipeline_stages(specification)
    }
    for stage in pipeline_stages(specification):
        sources = [tasks[source.stage] for source in stage.inputs.values()]
        (sources or [ask]) >> tasks[stage.name]
    return dag


class _AskServices:
    """Asks the services, when the run begins, for what the cache keys need."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, params: Any, **_: object) -> dict[str, Any]:
        facts = ask_services(specification_of_run(self._path, params), ClientSettings.from_environment())
        return {"versions": dict(facts.versions), "snapshot": facts.snapshot}


class _RunStage:
    """Runs one component of the run. It is an instance, as `{{` in arguments would be rendered by Airflow."""

    def __init__(self, path: Path, stage: str, settings: AirflowSettings) -> None:
        self._path = path
        self._stage = stage
        self._folder = settings.folder
        self._metadata = settings.metadata

    def __call__(self, params: Any, ti: Any, run_id: str, **_: object) -> None:
        # TFX takes seconds to import, for which no DAG file has time.
        from gpt2_orchestration.pipelines.single_stage import run_stage

        specification = specification_of_run(self._path, params)
        facts = ServiceFacts(**ti.xcom_pull(task_ids=_ASK))
        pipeline = PipelineSettings(
            root=self._folder / specification.name,
            metadata=self._metadata or self._folder / f"{specification.name}.db",
        )
        run_stage(self._stage, run_id, specification, facts, pipeline)
