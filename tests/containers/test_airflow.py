"""Both DAGs of a specification, under Airflow in its containers."""

import json
import time

import pytest

from gpt2.registry.v1 import registry_service_pb2
from gpt2_orchestration.client.service_client import connect

from .runs import CLIENT, PIPELINE


@pytest.fixture(scope="module")
def scheduler(stack) -> str:
    """The service whose container has Airflow's command line."""
    return next(name for name in ("airflow-scheduler", "airflow") if name in stack.containers())


@pytest.mark.parametrize("dag", [PIPELINE, f"{PIPELINE}-services"])
def test_a_dag_registers_a_labelled_version(stack, scheduler, documents, dag):
    def airflow(*words: str) -> str:
        return stack.compose("exec", "-T", scheduler, "airflow", *words)

    airflow("dags", "unpause", dag)
    airflow("dags", "trigger", dag, "--run-id", "first", "--conf", json.dumps({"model_name": dag, "steps": 20}))
    deadline = time.monotonic() + 900
    while (state := _state(airflow("dags", "list-runs", "--dag-id", dag, "--output", "json"))) not in (
        "success",
        "failed",
    ):
        assert time.monotonic() < deadline, state
        time.sleep(5)
    assert state == "success", airflow("tasks", "states-for-dag-run", dag, "first")
    with connect("registry", CLIENT) as registry:
        request = registry_service_pb2.GetModelVersionRequest(model_name=dag, label="staging")
        assert registry.call("GetModelVersion", request).model_version.version == 1


def _state(printed: str) -> str:
    # Lines of the log can stand before it, which begin with a bracket too.
    runs, _ = json.JSONDecoder().raw_decode(printed, printed.index("[{"))
    return {run["run_id"]: run["state"] for run in runs}.get("first", "")
