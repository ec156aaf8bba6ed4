"""Kafka, MongoDB and MLflow away for a while: in the middle of a run, and when a service starts or a run begins.

After each: no event is lost and no effect doubled, the events of a run are in order, and the services consume again
within a minute of Kafka's return. A job that needs what is away waits for it, or fails with UNAVAILABLE and is
continued. GPT2_FAULTS=long has outages of up to three minutes.
"""

import os
import time

import pytest
from google.rpc import code_pb2
from pymongo import MongoClient

from gpt2.exporter.v1 import exporter_service_pb2 as exporter
from gpt2.jobs.v1 import job_pb2
from gpt2.registry.v1 import registry_service_pb2 as registry

from .runs import EXPORT, SMALL, Job, check, finish, start, wait_for_job
from .services import FaultStack

SECONDS = (30, 120, 180) if os.environ.get("GPT2_FAULTS") == "long" else (5,)
_BACK_WITHIN_SECONDS = 60
for_seconds = pytest.mark.parametrize("seconds", SECONDS, ids=lambda seconds: f"{seconds} s")


def go_without(stack: FaultStack, name: str, seconds: float) -> None:
    """Lets a killed backend be away for a while, then waits until it answers again."""
    time.sleep(seconds)
    stack.backends[name].start().wait_until_ready()


def go_on_after(stack: FaultStack, seconds: float, run_id: str, kind: str) -> tuple[float, int]:
    """Lets Kafka be away, and a run then go on with a stage and end. Returns seconds until that stage, and events."""
    go_without(stack, "kafka", seconds)
    back = time.monotonic()
    wait_for_job(stack, run_id, kind)
    waited = time.monotonic() - back
    assert waited < _BACK_WITHIN_SECONDS
    return waited, check(stack, run_id, finish(stack, run_id, "EncodeCorpus"))


def seen(outcome: str, waited: float, events: int) -> str:
    return f"{outcome}, {waited:.1f} s after it was back; {events} events, each change of state once and in order"


@for_seconds
def test_a_run_continues_when_kafka_was_away_in_its_middle(stack, seconds, report):
    run_id = f"kafka-middle-{seconds}"
    start(stack, run_id, SMALL)
    wait_for_job(stack, run_id, "TrainTokenizer")
    stack.backends["kafka"].kill()
    wait_for_job(stack, run_id, "TrainTokenizer", Job.STATE_SUCCEEDED)
    waited, events = go_on_after(stack, seconds, run_id, "EncodeCorpus")
    report(seen("continued", waited, events))


@for_seconds
def test_services_that_start_without_kafka_take_calls_and_publish_when_it_is_there(stack, seconds, report):
    run_id = f"kafka-start-{seconds}"
    stack.backends["kafka"].kill()
    started = [stack.services[name] for name in ("exporter", "tokenizer")]
    for service in started:
        service.kill()
        service.start().wait_until_ready()
    start(stack, run_id, SMALL)
    wait_for_job(stack, run_id, "ImportFiles", Job.STATE_SUCCEEDED)
    waited, events = go_on_after(stack, seconds, run_id, "TrainTokenizer")
    report(seen("continued", waited, events))


@for_seconds
def test_an_export_during_which_mongodb_goes_away_has_every_document_in_the_end(
    stack, seconds, mongodb_documents, report
):
    run_id = f"mongodb-middle-{seconds}"
    source = exporter.MongoSource(database="faults", collections=["many"], text_field="body")
    request = exporter.ExportCorpusRequest(source=source, job=job_pb2.JobOptions(run_id=run_id, job_id=f"{run_id}/a"))
    stack.services["exporter"].call("ExportCorpus", request)
    while not wait_for_job(stack, run_id, "ExportCorpus", Job.STATE_QUEUED, Job.STATE_RUNNING).progress.done:
        time.sleep(0.01)
    stack.backends["mongodb"].kill()
    go_without(stack, "mongodb", seconds)
    job, outcome, waited = bring_to_its_end(stack, run_id, "ExportCorpus")
    assert job.outputs[0].counts["documents"] == mongodb_documents
    events = check(stack, run_id, {job.kind: job})
    report(seen(outcome, waited, events))


@for_seconds
def test_an_export_that_begins_without_mongodb_ends_well_when_it_is_there(stack, seconds, report):
    run_id = f"mongodb-start-{seconds}"
    stack.backends["mongodb"].kill()
    request = exporter.ExportCorpusRequest(job=job_pb2.JobOptions(run_id=run_id, job_id=f"{run_id}/a"))
    request.source.CopyFrom(exporter.MongoSource(**EXPORT["source"]))
    stack.services["exporter"].call("ExportCorpus", request)
    go_without(stack, "mongodb", seconds)
    job, outcome, waited = bring_to_its_end(stack, run_id, "ExportCorpus")
    events = check(stack, run_id, {job.kind: job})
    report(seen(outcome, waited, events))


@for_seconds
@pytest.mark.parametrize("when", [pytest.param("at the start", marks=pytest.mark.exhaustive), "in a registration"])
def test_a_registration_without_mlflow_makes_one_version_when_it_is_there(stack, undisturbed, seconds, when, report):
    run_id = f"mlflow-{when.split()[-1]}-{seconds}"
    if when == "at the start":
        stack.backends["mlflow"].kill()
    options = job_pb2.JobOptions(run_id=run_id, job_id=f"{run_id}/a")
    request = registry.RegisterModelRequest(
        model_uri=undisturbed["ExportModel"].outputs[0].uri, model_name=run_id, label="staging", job=options
    )
    stack.services["registry"].call("RegisterModel", request)
    if when != "at the start":
        while wait_for_job(stack, run_id, "RegisterModel").progress.phase in ("", "verifying"):
            time.sleep(0.01)
        stack.backends["mlflow"].kill()
    go_without(stack, "mlflow", seconds)
    job, outcome, waited = bring_to_its_end(stack, run_id, "RegisterModel")
    events = check(stack, run_id, {job.kind: job})
    report(seen(outcome, waited, events))


def bring_to_its_end(stack: FaultStack, run_id: str, kind: str) -> tuple[Job, str, float]:
    """Continues a job that has failed, now that its server is back. Returns it, what came of it, and the seconds."""
    back = time.monotonic()
    job = wait_for_job(stack, run_id, kind, Job.STATE_SUCCEEDED, Job.STATE_FAILED)
    outcome = "waited"
    if job.state == Job.STATE_FAILED:
        assert job.error.code == code_pb2.UNAVAILABLE, job.error
        with stack.owner(kind).connect() as client:
            client.continue_run(run_id)
        outcome = "UNAVAILABLE, continued"
        job = wait_for_job(stack, run_id, kind, Job.STATE_SUCCEEDED)
    return job, outcome, time.monotonic() - back


@pytest.fixture(scope="module")
def mongodb_documents(stack) -> int:
    """How many documents there are in a collection that takes a while to export."""
    count = 20_000
    with MongoClient(f"mongodb://{stack.addresses['mongodb']}") as client:
        client["faults"]["many"].insert_many({"_id": f"{n:06}", "body": f"{n} " * 100} for n in range(count))
    return count
