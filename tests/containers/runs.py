"""Planned runs over the services of the stack: from documents in MongoDB to a registered version."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.json_format import ParseDict
from pymongo import MongoClient

from gpt2.exporter.v1.exporter_service_pb2 import ExportCorpusRequest
from gpt2.jobs.v1.job_pb2 import Job, JobOptions, RunPlan
from gpt2.registry.v1 import registry_service_pb2
from gpt2.trainer.v1.trainer_service_pb2 import TrainModelRequest
from gpt2_orchestration.client.addresses import DEFAULT_PORTS
from gpt2_orchestration.client.service_client import ClientSettings, ServiceError, connect

DATABASE = "containers"
COLLECTION = "articles"
PIPELINE = "containers"
SPECIFICATION = f"""
name: {PIPELINE}
export_corpus: {{source: {{database: {DATABASE}, collections: [{COLLECTION}]}}}}
train_tokenizer: {{vocabulary_size: 512}}
encode_corpus: {{validation_fraction: 0.2}}
train_model:
  model: {{n_layer: 1, n_head: 2, n_embd: 16, n_ctx: 16}}
  config: {{steps: 20, batch_size: 2}}
register_model: {{model_name: {PIPELINE}, label: staging}}
"""
_SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 64, "n_ctx": 64}
CLIENT = ClientSettings(addresses={service: f"localhost:{port}" for service, port in DEFAULT_PORTS.items()})


def insert_documents(password: str, host: str = "localhost") -> None:
    """Puts texts into the stack's MongoDB, in place of what the collection had."""
    with MongoClient(f"mongodb://gpt2:{password}@{host}:27017/?authSource=admin") as client:
        collection = client[DATABASE][COLLECTION]
        collection.drop()
        collection.insert_many(
            {"_id": number, "text": f"{number} bottles of beer on the wall, {number} bottles. " * 30}
            for number in range(200)
        )


def start_run(run_id: str, steps: int = 200, client: ClientSettings = CLIENT, **config: Any) -> None:
    """Starts a run; its training takes about half a minute on two cores.

    Args:
        run_id: The run's.
        steps: Of its training.
        client: Where the services are.
        **config: More of the training's configuration.
    """
    plan = RunPlan()
    for start, request in (
        ("TrainTokenizer", {"vocabulary_size": 512}),
        ("EncodeCorpus", {"validation_fraction": 0.2}),
        ("TrainModel", {"model": _SIZES, "config": _training(steps, config)}),
        *_after_training(run_id),
    ):
        plan.stages.add(start=start).request.update(request)
    request = ExportCorpusRequest(job=JobOptions(run_id=run_id, plan=plan))
    request.source.database = DATABASE
    request.source.collections.append(COLLECTION)
    with connect("exporter", client) as exporter:
        exporter.call("ExportCorpus", request)


def start_training(
    run_id: str, dataset_uri: str, steps: int = 200, client: ClientSettings = CLIENT, **config: Any
) -> str:
    """Starts a run that begins with the training of `start_run`, on another run's dataset. Returns its job's id."""
    plan = RunPlan()
    for start, content in _after_training(run_id):
        plan.stages.add(start=start).request.update(content)
    request = TrainModelRequest(job=JobOptions(run_id=run_id, plan=plan), dataset_uri=dataset_uri)
    ParseDict({"model": _SIZES, "config": _training(steps, config)}, request)
    with connect("trainer", client) as trainer:
        return str(trainer.call("TrainModel", request).job.job_id)


def _training(steps: int, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"steps": steps, "batch_size": 8, "save_every": 50, "seed": 1, **config}


def _after_training(run_id: str) -> list[tuple[str, dict[str, Any]]]:
    return [("ExportModel", {}), ("RegisterModel", {"model_name": run_id, "label": "staging"})]


def jobs_of(run_id: str, client: ClientSettings = CLIENT) -> dict[str, Job]:
    """The jobs of a run by kind, from the services that answer."""
    found = {}
    for service in DEFAULT_PORTS:
        try:
            with connect(service, client, 5) as connected:
                found.update({job.kind: job for job in connected.jobs(run_id)})
        except ServiceError:
            continue
    return found


def wait_for_job(run_id: str, kind: str, *states: int, seconds: float = 600, client: ClientSettings = CLIENT) -> Job:
    """Waits until a run has a job of a kind, in one of the states; a service may be away meanwhile."""

    def found() -> Job | None:
        jobs = jobs_of(run_id, client)
        failed = {name: job.error.message for name, job in jobs.items() if job.state == Job.STATE_FAILED}
        assert not failed, failed
        job = jobs.get(kind)
        return job if job is not None and (not states or job.state in states) else None

    return _until(found, seconds, f"{run_id} has no {kind}")


def finish(run_id: str, seconds: float = 600, client: ClientSettings = CLIENT) -> dict[str, Job]:
    """Waits until a run has registered its version. Returns its jobs."""
    wait_for_job(run_id, "RegisterModel", Job.STATE_SUCCEEDED, seconds=seconds, client=client)
    with connect("registry", client) as registry:
        request = registry_service_pb2.GetModelVersionRequest(model_name=run_id, label="staging")
        # Where a job has run twice, it must not have registered twice.
        assert registry.call("GetModelVersion", request).model_version.version == 1
    return jobs_of(run_id, client)


def digests(jobs: Mapping[str, Job]) -> dict[str, str]:
    """What a run has made: digests of its artifacts, by the stage and the URI."""
    return {f"{job.kind}/{output.uri}": output.digest for job in jobs.values() for output in job.outputs}


def _until(condition: Callable[[], Job | None], seconds: float, what: str) -> Job:
    deadline = time.monotonic() + seconds
    while (value := condition()) is None:
        assert time.monotonic() < deadline, what
        time.sleep(0.5)
    return value
