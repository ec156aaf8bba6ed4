"""The container of a stage runs `python -m gpt2_orchestration.runners.kubeflow.task STAGE EXECUTOR_INPUT`.

EXECUTOR_INPUT is the JSON of a PipelineSpec's ExecutorInput. Data stays where the services store it: Kubeflow's
artifacts are a copy of the service's description (`artifact.json`), with URI and digest as metadata.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from gpt2.artifacts.v1 import artifact_pb2
from gpt2_catalogue import catalogue
from gpt2_orchestration.client.service_client import ClientSettings, ServiceError, connect
from gpt2_orchestration.pipelines.requests import Input, build_request, run_job

_MOUNTS = {"gs://": "/gcs/", "minio://": "/minio/", "s3://": "/s3/"}
"""Mount points of artifacts' files in Kubeflow's launcher, by URI scheme."""


def run_task(name: str, executor_input: Mapping[str, Any]) -> None:
    """Runs the start call of a stage and describes its outputs.

    Args:
        name: Name of the stage, such as `TrainModel`.
        executor_input: Kubeflow's ExecutorInput.

    Raises:
        JobFailed: The job ended FAILED or CANCELLED.
        ServiceError: The service refused the call or does not answer.
    """
    stage = catalogue().stages[name]
    given = executor_input["inputs"]
    parameters = given["parameterValues"]
    inputs = {key: _input(item["artifacts"][0]) for key, item in given.get("artifacts", {}).items()}
    request = build_request(stage, parameters["request"], inputs, parameters["run_id"])
    with connect(stage.service, ClientSettings.from_environment()) as client:
        job = run_job(client, name, request)
    made = {output.name: output for output in job.outputs}
    described = {}
    for key, item in executor_input["outputs"].get("artifacts", {}).items():
        described[key] = {"artifacts": [_describe(item["artifacts"][0], made[key], job.job_id)]}
    file = Path(executor_input["outputs"]["outputFile"])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"artifacts": described}), encoding="utf-8")


def _input(artifact: Mapping[str, Any]) -> Input:
    return Input(artifact["metadata"]["artifact_uri"], artifact["metadata"]["digest"])


def _describe(artifact: Mapping[str, Any], output: artifact_pb2.Artifact, job_id: str) -> dict[str, Any]:
    folder = _local_folder(artifact["uri"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "artifact.json").write_text(json_format.MessageToJson(output), encoding="utf-8")
    facts = {"artifact_uri": output.uri, "digest": output.digest, "job_id": job_id}
    return {**artifact, "metadata": {**output.properties, **output.counts, **facts}}


def _local_folder(uri: str) -> Path:
    for scheme, mount in _MOUNTS.items():
        if uri.startswith(scheme):
            return Path(mount + uri.removeprefix(scheme))
    return Path(uri.removeprefix("file://"))


def main(arguments: list[str]) -> int:
    """Runs the command; its exit status is the result."""
    if len(arguments) != 2 or arguments[0] not in catalogue().stages:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        run_task(arguments[0], json.loads(arguments[1]))
    except ServiceError as error:
        print(f"{arguments[0]}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
