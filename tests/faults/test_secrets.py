"""Passwords of the services are in no file that a stack keeps: databases, topics, logs, MLflow, TensorBoard.

They are in the environment of the services and of their jobs, and used for calls, for MLflow, and for a MongoDB server
that does not answer, whose error users see.
"""

from base64 import b64encode
from pathlib import Path

import pytest
from google.rpc import code_pb2

from gpt2.exporter.v1 import exporter_service_pb2 as exporter
from gpt2.jobs.v1 import job_pb2
from gpt2_orchestration.client.service_client import ClientSettings, ServiceError, connect

from .runs import UNDISTURBED, Job, wait_for_job

PLACES = {
    "databases of the services": "data/*.db*",
    "MongoDB": "data/mongodb/**/*",
    "topics": "data/kafka/logs/gpt2.stage-events*/*",
    "MLflow": "data/mlflow/**/*",
    "logs": "logs/*.log",
    "TensorBoard": "artifacts/*/logs/**/*",
    "other artifacts": "artifacts/**/*",
}
"""Patterns of files below the stack's folder. All else in it is searched too."""


def forms(secret: str) -> list[bytes]:
    """A secret as it can stand in a file: itself, and as part of an HTTP header for basic authentication."""
    return [secret.encode(), b64encode(f"user:{secret}".encode())]


def files_with(files: list[Path], wanted: list[bytes]) -> list[Path]:
    return [path for path in files if any(form in path.read_bytes() for form in wanted)]


def test_no_password_is_kept_anywhere(stack, undisturbed, canaries, report):
    run_id = UNDISTURBED
    guarded = exporter.MongoSource(database="faults", collections=["articles"], text_field="body", connection="guarded")
    request = exporter.ExportCorpusRequest(source=guarded, job=job_pb2.JobOptions(job_id=f"{run_id}-guarded"))
    stack.services["exporter"].call("ExportCorpus", request)
    failed = wait_for_job(stack, f"{run_id}-guarded", "ExportCorpus", Job.STATE_FAILED)
    assert failed.error.code == code_pb2.UNAVAILABLE
    wrong = ClientSettings(addresses=stack.client.addresses, token="wrong")
    with connect("exporter", wrong) as stranger, pytest.raises(ServiceError, match="UNAUTHENTICATED"):
        stranger.describe()
    root = stack.folder.root
    table: list[list[object]] = [["place", "files", "that name the run", "that have a password"]]
    secrets = [form for secret in canaries.values() for form in forms(secret)]
    for place, pattern in {**PLACES, "all": "**/*"}.items():
        files = [path for path in root.glob(pattern) if path.is_file()]
        found = files_with(files, secrets)
        known = files_with(files, [b"articles" if place == "MongoDB" else run_id.encode()])
        table.append([place, len(files), len(known), len(found)])
        assert not found, f"{place}: {found}"
        # What is in these files can be read as it is, so that a password would be found too.
        assert known or place == "TensorBoard", place
        assert files, place
    searched = table[-1][1]
    report(f"none of {len(canaries)} passwords in {searched} files; other texts of the run are found in them", table)
