"""Planned runs over the real services and Apache Kafka, while each service is killed at random points.

Whatever was killed: every stage has SUCCEEDED, its artifacts are those of a run that nobody killed, one version is
registered, the event log tells each change of state once and in order, and no temporary file is left.
GPT2_FAULTS=long kills each service 20 times or more.
"""

import os
import random
import re
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from brokers import require_java
from history import check_history, history, stray_files
from mlflow import MlflowClient
from pymongo import MongoClient

from gpt2.exporter.v1 import exporter_service_pb2 as exporter
from gpt2.jobs.v1 import job_pb2
from gpt2_common.artifacts import Manifest

from .services import KINDS, FaultStack, fault_stack

Job = job_pb2.Job
LONG = os.environ.get("GPT2_FAULTS") == "long"
RUNS, KILLS_OF_A_STAGE = (10, 2) if LONG else (1, 1)
# A short run's kills are at one stage of each service, of the long form's at all.
SHORT_STAGES = ("ExportCorpus", "EncodeCorpus", "TrainModel", "RegisterModel")
FIRST = "ImportFiles"
# TensorFlow puts a random number into its fingerprint, logs have times, an imported checkpoint names its source.
_DIFFERS = re.compile(r"saved_model/fingerprint\.pb$|^TrainModel/logs/|^ImportCheckpoint/checkpoint/state\.json$")
MODEL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_ctx": 16}


def stages(artifacts: str, run_id: str) -> dict[str, dict]:
    """The start calls after the first, and their requests: together all kinds of job there are."""
    model = f"{artifacts}/{run_id}~export-model/model"
    return {
        "ExportCorpus": {"source": {"database": "faults", "collections": ["articles"], "text_field": "body"}},
        "TrainTokenizer": {"vocabulary_size": 300},
        "EncodeCorpus": {"validation_fraction": 0.3},
        "TrainModel": {"model": MODEL, "config": {"steps": 20, "save_every": 5, "seed": 1}},
        "ExportModel": {},
        "EvaluateModel": {"model_uri": model, "dataset_uri": f"{artifacts}/{run_id}~encode-corpus/dataset"},
        "ImportTokenizer": {"uri": model},
        "ImportCheckpoint": {"uri": model},
        "RegisterModel": {"model_name": run_id, "label": "staging"},
    }


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    require_java()
    root = tmp_path_factory.mktemp("faults")
    (root / "text").mkdir()
    texts = [f"{number} bottles of beer on the wall, {number} bottles. " * 30 for number in range(40)]
    for number, text in enumerate(texts):
        (root / "text" / f"{number}.txt").write_text(text)
    with fault_stack(root) as running:
        with MongoClient(f"mongodb://{running.addresses['mongodb']}") as mongodb:
            mongodb["faults"]["articles"].insert_many({"_id": f"{n:03}", "body": text} for n, text in enumerate(texts))
        yield running


def start(stack: FaultStack, run_id: str) -> None:
    planned = job_pb2.RunPlan()
    for name, request in stages(stack.folder.artifacts.as_uri(), run_id).items():
        planned.stages.add(start=name).request.update(request)
    request = exporter.ImportFilesRequest(
        uris=[str(stack.folder.root.parent / "text")], job=job_pb2.JobOptions(run_id=run_id, plan=planned)
    )
    stack.services["exporter"].call("ImportFiles", request)


def wait_for_job(stack: FaultStack, run_id: str, kind: str, *states: int) -> Job:
    deadline = time.monotonic() + 300
    while True:
        found = [job for job in stack.owner(kind).jobs(run_id) if job.kind == kind]
        if found and (not states or found[0].state in states):
            return found[0]
        jobs = [(job.job_id, Job.State.Name(job.state), job.error.message) for job in stack.jobs(run_id)]
        assert time.monotonic() < deadline, f"{kind} is not there: {jobs}"
        assert not any(state == "STATE_FAILED" for _, state, _ in jobs), jobs
        time.sleep(0.05)


def finish(stack: FaultStack, run_id: str) -> dict[str, Job]:
    """The jobs of a run, by kind, when its last has succeeded."""
    wait_for_job(stack, run_id, "RegisterModel", Job.STATE_SUCCEEDED)
    return {job.kind: job for job in stack.jobs(run_id)}


def seconds(job: Job) -> float:
    return job.end_time.ToDatetime().timestamp() - job.create_time.ToDatetime().timestamp()


def kill_at_random(stack: FaultStack, run_id: str, kind: str, within: float, dice: random.Random) -> list[str]:
    """Kills the service of a kind of job at a random point of the job's life. Returns what the table says of it."""
    service = stack.owner(kind)
    wait_for_job(stack, run_id, kind)
    after = dice.uniform(0, within)
    time.sleep(after)
    [job] = [job for job in service.jobs(run_id) if job.kind == kind]
    service.kill()
    service.start().wait_until_ready()
    return [service.name, kind, f"{after:.2f}", Job.State.Name(job.state).removeprefix("STATE_"), job.progress.phase]


def digests(jobs: dict[str, Job]) -> dict[tuple[str, str], str]:
    """SHA-256 of each file that the jobs have made, but of those that hold times or ids."""
    folders = [(kind, Path(urlsplit(output.uri).path)) for kind, job in jobs.items() for output in job.outputs]
    manifests = [(kind, folder / "manifest.json") for kind, folder in folders if kind != "RegisterModel"]
    files = [
        (kind, f"{path.parent.name}/{entry.path}", entry.sha256)
        for kind, path in manifests
        for entry in Manifest.from_json(path.read_text(), str(path)).files
    ]
    return {(kind, name): sha256 for kind, name, sha256 in files if not _DIFFERS.search(f"{kind}/{name}")}


def check(stack: FaultStack, run_id: str, jobs: dict[str, Job]) -> None:
    assert {kind for kinds in KINDS.values() for kind in kinds} == set(jobs)
    check_history(history(stack.addresses["kafka"], run_id, list(jobs.values())), list(jobs.values()))
    mlflow = f"http://{stack.addresses['mlflow']}"
    versions = MlflowClient(mlflow, mlflow).search_model_versions(f"name='{run_id}'")
    assert [int(version.version) for version in versions] == [1]
    assert not stray_files(stack.folder.artifacts)


@pytest.fixture(scope="module")
def undisturbed(stack) -> dict[str, Job]:
    """The jobs of a run that nobody killed."""
    start(stack, "undisturbed")
    jobs = finish(stack, "undisturbed")
    check(stack, "undisturbed", jobs)
    return jobs


@pytest.mark.parametrize("number", range(RUNS))
def test_killed_services_bring_a_run_to_the_end_of_one_that_nobody_killed(stack, undisturbed, number, capsys):
    run_id = f"killed-{number}"
    dice = random.Random(number)
    table = [["run", "service", "stage", "killed after s", "state", "phase"]]
    start(stack, run_id)
    for kind in (FIRST, *stages("", "")) if LONG else SHORT_STAGES:
        for _ in range(KILLS_OF_A_STAGE):
            table.append([run_id, *kill_at_random(stack, run_id, kind, seconds(undisturbed[kind]), dice)])
    jobs = finish(stack, run_id)
    check(stack, run_id, jobs)
    expected = digests(undisturbed)
    assert {kind for kind, _ in expected} == set(jobs) - {"RegisterModel"}
    assert digests(jobs) == expected
    with capsys.disabled():
        print()
        for row in table:
            print("".join(f"{cell:<18}" for cell in row))
        print(
            f"{len(table) - 1} kills of run {number}: the right end, equal artifacts, one version, one event a change"
        )
