"""The README's grpcurl calls, as it shows them, against the running stack."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt2.jobs.v1.job_pb2 import Job
from gpt2.registry.v1 import registry_service_pb2 as registry_pb
from gpt2_orchestration.client import connect

ROOT = Path(__file__).parents[2]
DEFAULT_PORTS = {"mongodb": "27017", "exporter": "50051", "tokenizer": "50052", "trainer": "50053", "registry": "50054"}


def blocks(kind: str) -> list[str]:
    """The README's blocks of commands that are marked with a word."""
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"^```sh {kind}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def objects(output: str) -> list[dict]:
    """The JSON objects in an output, one after the other."""
    decoder = json.JSONDecoder()
    found = []
    position = output.find("{")
    while position != -1:
        content, end = decoder.raw_decode(output, position)
        found.append(content)
        position = output.find("{", end)
    return found


@pytest.fixture
def run(stack, grpcurl):
    """Runs a block in a folder that looks like a checkout with the stack up in it."""
    folder = stack.folder.parent
    if not (folder / ".venv").exists():
        (folder / ".venv").symlink_to(sys.prefix)

    def run_block(block: str) -> str:
        for service, address in stack.client.addresses.items():
            block = block.replace(f"localhost:{DEFAULT_PORTS[service]}", address)
        block = block.replace("mongodb://localhost:27017", stack.addresses.mongodb_uri)
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=folder,
            env={**os.environ, "PATH": f"{grpcurl}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
        return result.stdout

    return run_block


def ended_jobs(output: str) -> dict[str, dict]:
    """The last that was said of each job."""
    return {content["job"]["job_id"]: content["job"] for content in objects(output) if "job" in content}


def test_every_start_call_works_as_the_readme_shows_it(run, stack):
    [text] = blocks("text")
    run(text)
    main, others = blocks("grpcurl")
    output = run(main)
    assert "gpt2.exporter.v1.ExporterService" in output
    jobs = ended_jobs(output)
    assert {job["state"] for job in jobs.values()} == {"STATE_SUCCEEDED"}, jobs
    version = [content["model_version"] for content in objects(output) if "model_version" in content]
    assert version[0]["labels"] == ["staging"]
    pieces = [content for content in objects(output) if "finish_reason" in content]
    assert pieces, "Generate streamed no end"

    jobs |= ended_jobs(run(others))
    kinds = {job["kind"] for job in jobs.values()}
    assert {job["state"] for job in jobs.values()} == {"STATE_SUCCEEDED"}, jobs
    assert kinds == {
        "ExportCorpus", "ImportFiles", "TrainTokenizer", "ImportTokenizer", "EncodeCorpus",
        "ImportCheckpoint", "TrainModel", "ExportModel", "RegisterModel",
    }  # fmt: skip


def test_one_call_with_a_plan_takes_text_to_a_labelled_model(run, stack):
    [text] = blocks("text")
    run(text)
    [call] = blocks("plan")
    run(call)
    with connect("registry", stack.client) as registry:
        deadline = time.monotonic() + 600
        while not (jobs := registry.jobs("planned")) or jobs[0].state in (Job.STATE_QUEUED, Job.STATE_RUNNING):
            assert time.monotonic() < deadline
            for service in stack.client.addresses:
                with connect(service, stack.client) as other:
                    failed = [job for job in other.jobs("planned") if job.state == Job.STATE_FAILED]
                    assert not failed, failed
            time.sleep(0.5)
        assert jobs[0].state == Job.STATE_SUCCEEDED, jobs[0]
        request = registry_pb.GetModelVersionRequest(model_name="planned", label="staging")
        assert registry.call("GetModelVersion", request).model_version.version == 1


def test_the_client_by_reflection_does_what_grpcurl_does(stack, grpcurl):
    """It stands in for grpcurl where there is no Go; here both are there to be compared."""
    address = stack.client.addresses["exporter"]
    request = '{"source": {"database": "nowhere", "collections": ["nothing"]}}'
    arguments = ["-plaintext", "-d", request, address, "gpt2.exporter.v1.ExporterService/DescribeSource"]
    stand_in = [sys.executable, str(ROOT / "tests" / "grpcurl.py")]
    theirs, ours = (
        subprocess.run([*command, *arguments], capture_output=True, text=True)
        for command in ([shutil.which("grpcurl", path=str(grpcurl))], stand_in)
    )
    assert ours.returncode == theirs.returncode
    assert objects(ours.stdout) == objects(theirs.stdout)
