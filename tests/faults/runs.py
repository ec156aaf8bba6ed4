"""Planned runs of all kinds of job: started, waited for, and held against what was promised of them."""

import re
import time
from collections.abc import Mapping

from history import check_history, history, stray_files
from mlflow import MlflowClient

from gpt2.exporter.v1 import exporter_service_pb2 as exporter
from gpt2.jobs.v1 import job_pb2
from gpt2_common.artifacts import Manifest
from gpt2_common.artifacts.roots import local_path

from .services import FaultStack

Job = job_pb2.Job
FIRST = "ImportFiles"
UNDISTURBED = "undisturbed"
"""The run of all kinds of job that others are held against."""
MODEL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_ctx": 16}
EXPORT = {"source": {"database": "faults", "collections": ["articles"], "text_field": "body"}}
SMALL = {"TrainTokenizer": {"vocabulary_size": 300}, "EncodeCorpus": {"validation_fraction": 0.3}}
"""The stages of a run that is over in seconds."""
# TensorFlow puts a random number into its fingerprint, logs have times, an imported checkpoint names its source and an
# evaluation its dataset.
_DIFFERS = re.compile(
    r"saved_model/fingerprint\.pb$|^TrainModel/logs/"
    r"|^ImportCheckpoint/checkpoint/state\.json$|^EvaluateModel/evaluation/evaluation\.json$"
)


def all_stages(artifacts: str, run_id: str) -> dict[str, dict]:
    """The start calls after the first, and their requests: together all kinds of job there are."""
    model = f"{artifacts}/{run_id}~export-model/model"
    return {
        "ExportCorpus": EXPORT,
        **SMALL,
        "TrainModel": {"model": MODEL, "config": {"steps": 20, "save_every": 5, "seed": 1}},
        "ExportModel": {},
        "EvaluateModel": {"model_uri": model, "dataset_uri": f"{artifacts}/{run_id}~encode-corpus/dataset"},
        "ImportTokenizer": {"uri": model},
        "ImportCheckpoint": {"uri": model},
        "RegisterModel": {"model_name": run_id, "label": "staging"},
    }


def request_of(kind: str, stack: FaultStack, undisturbed: Mapping[str, Job]) -> dict:
    """The request of one stage alone, with the artifacts of the run that nothing disturbed."""
    made = {name: job.outputs[0].uri for name, job in undisturbed.items()}
    inputs = {
        FIRST: {"uris": [texts(stack)]},
        "TrainTokenizer": {"corpus_uri": made["ExportCorpus"]},
        "EncodeCorpus": {"corpus_uri": made["ExportCorpus"], "tokenizer_uri": made["TrainTokenizer"]},
        "TrainModel": {"dataset_uri": made["EncodeCorpus"]},
        "ExportModel": {"checkpoint_uri": made["TrainModel"]},
        "RegisterModel": {"model_uri": made["ExportModel"], "logs_uri": undisturbed["TrainModel"].outputs[1].uri},
    }
    planned = all_stages(stack.folder.artifacts.as_uri(), UNDISTURBED)
    return {**planned.get(kind, {}), **inputs.get(kind, {})}


def texts(stack: FaultStack) -> str:
    """The folder of the files that the suite's runs begin with."""
    return str(stack.folder.root.parent / "text")


def start(stack: FaultStack, run_id: str, stages: Mapping[str, dict]) -> None:
    """Starts a run whose first stage reads the files of the suite."""
    planned = job_pb2.RunPlan()
    for name, request in stages.items():
        planned.stages.add(start=name).request.update(request)
    request = exporter.ImportFilesRequest(uris=[texts(stack)], job=job_pb2.JobOptions(run_id=run_id, plan=planned))
    stack.services["exporter"].call(FIRST, request)


def wait_for_job(stack: FaultStack, run_id: str, kind: str, *states: int) -> Job:
    """Waits until a run has a job of a kind, in one of the states. Another of its jobs that fails ends the waiting."""
    deadline = time.monotonic() + 300
    while True:
        jobs = stack.jobs(run_id)
        found = [job for job in jobs if job.kind == kind]
        if found and (not states or found[0].state in states):
            return found[0]
        seen = [(job.job_id, Job.State.Name(job.state), job.error.message) for job in jobs]
        assert time.monotonic() < deadline, f"{kind} is not there: {seen}"
        assert not any(state == "STATE_FAILED" for _, state, _ in seen), seen
        time.sleep(0.05)


def finish(stack: FaultStack, run_id: str, last: str) -> dict[str, Job]:
    """The jobs of a run, by kind, when its last has succeeded."""
    wait_for_job(stack, run_id, last, Job.STATE_SUCCEEDED)
    return {job.kind: job for job in stack.jobs(run_id)}


def check(stack: FaultStack, run_id: str, jobs: Mapping[str, Job]) -> int:
    """Proves what was promised of a run that has ended. Returns the number of its events in the log."""
    events = history(stack.addresses["kafka"], run_id, list(jobs.values()))
    check_history(events, list(jobs.values()))
    if "RegisterModel" in jobs:
        mlflow = f"http://{stack.addresses['mlflow']}"
        versions = MlflowClient(mlflow, mlflow).search_model_versions(f"name='{run_id}'")
        assert [int(version.version) for version in versions] == [1]
    require_nothing_left(stack)
    return len(events)


def require_nothing_left(stack: FaultStack) -> None:
    """Proves that no unfinished work and no temporary file stays. Those of a process at work come and go."""
    deadline = time.monotonic() + 30
    while left := [*stray_files(stack.folder.artifacts), *stack.temporary.iterdir()]:
        assert time.monotonic() < deadline, f"left of unfinished work: {left}"
        time.sleep(0.2)


def digests(jobs: Mapping[str, Job]) -> dict[tuple[str, str], str]:
    """SHA-256 of each file that the jobs have made, but of those that hold times or ids."""
    folders = [(kind, local_path(output.uri)) for kind, job in jobs.items() for output in job.outputs]
    # A version is in no folder of ours.
    manifests = [(kind, folder / "manifest.json") for kind, folder in folders if folder is not None]
    files = [
        (kind, f"{path.parent.name}/{entry.path}", entry.sha256)
        for kind, path in manifests
        for entry in Manifest.from_json(path.read_text(), str(path)).files
    ]
    return {(kind, name): sha256 for kind, name, sha256 in files if not _DIFFERS.search(f"{kind}/{name}")}
