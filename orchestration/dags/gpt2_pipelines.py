"""Airflow reads this file: a DAG through TFX for each specification in GPT2_PIPELINES, and one that calls the services.

A specification that cannot be read shows as an import error in Airflow's pages, with what to do.
"""

from gpt2_orchestration.runners.airflow.dags import pipeline_dag, services_dag
from gpt2_orchestration.runners.airflow.settings import AirflowSettings

settings = AirflowSettings.from_environment()
for path in sorted(settings.pipelines.glob("*.yaml")):
    for dag in (pipeline_dag(path, settings), services_dag(path, settings)):
        globals()[dag.dag_id] = dag
