"""The DAGs of a specification: through TFX, with its cache and ML Metadata, and by calls to the services directly."""

from pathlib import Path
from typing import Any

from airflow import DAG
from airflow.operators.python import PythonOperator

from gpt2_orchestration.client.service_client import ClientSettings
from gpt2_orchestration.pipelines.settings import PipelineSettings, ServiceFacts, ask_services
from gpt2_orchestration.pipelines.specification import load_specification
from gpt2_orchestration.runners.airflow.operator import StartCallOperator
from gpt2_orchestration.runners.airflow.parameters import new_dag, specification_of_run, validate_run
from gpt2_orchestration.runners.airflow.settings import AirflowSettings

_ASK = "AskServices"
_VALIDATE = "ValidateStages"


def pipeline_dag(path: Path, settings: AirflowSettings, schedule: str | None = None) -> DAG:
    """Builds the DAG that runs a specification through TFX. It reads the file and calls no service.

    Args:
        path: The specification.
        settings: Folders and task defaults.
        schedule: Cron expression or preset; None: only when triggered.

    Raises:
        SpecificationError: The file is invalid.
    """
    specification = load_specification(path)
    description = "From text in a database to a registered GPT-2, through TFX."
    dag = new_dag(specification.name, description, settings, schedule, "tfx")
    ask = PythonOperator(task_id=_ASK, dag=dag, python_callable=_AskServices(path))
    tasks = {
        stage.name: PythonOperator(task_id=stage.name, dag=dag, python_callable=_RunStage(path, stage.name, settings))
        for stage in specification.stages()
    }
    for stage in specification.stages():
        sources = [tasks[source.stage] for source in stage.inputs.values()]
        (sources or [ask]) >> tasks[stage.name]
    return dag


def services_dag(path: Path, settings: AirflowSettings, schedule: str | None = None) -> DAG:
    """Builds the DAG that calls the services directly. Arguments and errors as `pipeline_dag`."""
    specification = load_specification(path)
    description = "From text in a database to a registered GPT-2, by calls to the services."
    dag = new_dag(f"{specification.name}-services", description, settings, schedule)
    stages = specification.stages()
    validate = PythonOperator(task_id=_VALIDATE, dag=dag, python_callable=_ValidateStages(path))
    tasks = {stage.name: StartCallOperator(task_id=stage.name, dag=dag, specification=path) for stage in stages}
    for stage in stages:
        sources = [tasks[source.stage] for source in stage.inputs.values()]
        (sources or [validate]) >> tasks[stage.name]
    return dag


class _AskServices:
    """Has the services validate all stages, and queries the facts for the cache keys, at the start of a run."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, params: Any, **_: object) -> dict[str, Any]:
        specification = specification_of_run(self._path, params)
        validate_run(self._path, specification)
        facts = ask_services(specification, ClientSettings.from_environment())
        return {"versions": dict(facts.versions), "snapshot": facts.snapshot}


class _RunStage:
    """Runs one component. An instance, as Airflow would render `{{` in arguments as a template."""

    def __init__(self, path: Path, stage: str, settings: AirflowSettings) -> None:
        self._path = path
        self._stage = stage
        self._folder = settings.folder
        self._metadata = settings.metadata

    def __call__(self, params: Any, ti: Any, run_id: str, **_: object) -> None:
        # Imported here: TFX takes seconds to import, too long for parsing a DAG file.
        from gpt2_orchestration.pipelines.single_stage import run_stage

        specification = specification_of_run(self._path, params)
        facts = ServiceFacts(**ti.xcom_pull(task_ids=_ASK))
        pipeline = PipelineSettings(
            root=self._folder / specification.name,
            metadata=self._metadata or self._folder / f"{specification.name}.db",
        )
        run_stage(self._stage, run_id, specification, facts, pipeline)


class _ValidateStages:
    """Has the services validate all stages, with the values of the run's trigger form."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, params: Any, **_: object) -> None:
        validate_run(self._path, specification_of_run(self._path, params))
