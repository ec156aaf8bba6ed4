"""The calls and commands of the how-tos, as the pages show them, against the running stack."""

import json
import shutil
import subprocess
import sys
import time

import pytest

from gpt2.jobs.v1.job_pb2 import Job, JobOptions
from gpt2.registry.v1 import registry_service_pb2 as registry_pb
from gpt2.trainer.v1.trainer_service_pb2 import GenerateRequest, SamplingConfig
from gpt2_orchestration.client.service_client import connect

from .documentation import ROOT, Reader, blocks, served

GRPCURL = "docs/how-to/grpcurl.md"
COMMAND_LINE = "docs/how-to/command-line.md"
SERVING = "docs/how-to/serving.md"


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


@pytest.fixture(scope="module")
def run(stack, grpcurl):
    """Runs commands in a folder that looks like a checkout with the stack up in it."""
    return Reader(stack, grpcurl).run


@pytest.fixture(scope="module")
def planned(run, stack) -> int:
    """Runs the call with a plan to its end. Returns the version that it registered."""
    [text] = blocks(GRPCURL, "text")
    run(text)
    [call] = blocks(GRPCURL, "plan")
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
        return registry.call("GetModelVersion", request).model_version.version


def ended_jobs(output: str) -> dict[str, dict]:
    """The last that was said of each job."""
    return {content["job"]["job_id"]: content["job"] for content in objects(output) if "job" in content}


def test_every_start_call_works_as_the_page_shows_it(run):
    [text] = blocks(GRPCURL, "text")
    run(text)
    main, others = blocks(GRPCURL, "grpcurl")
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


def test_one_call_with_a_plan_takes_text_to_a_labelled_model(planned):
    assert planned == 1


@pytest.mark.exhaustive  # test_commands.py has these commands, and test_documentation.py those of other pages
def test_commands_do_what_the_page_says(run, stack, planned):
    model = f"{stack.folder.as_uri()}/artifacts/planned~export-model/model"
    job = JobOptions(job_id="planned/second")
    request = registry_pb.RegisterModelRequest(job=job, model_uri=model, model_name="planned")
    with connect("registry", stack.client) as registry:
        registry.follow(registry.start("RegisterModel", request), lambda _: None)
    runs, models = blocks(COMMAND_LINE, "commands")
    assert "planned" in run(runs)
    said = run(models)
    assert "production of planned: version 2 (before: none)" in said
    assert "perplexity" in said


def test_the_model_is_served_as_the_page_says(run, stack, grpcurl, planned):
    [serve] = blocks(SERVING, "serve")
    [call] = blocks(SERVING, "curl")
    with served(Reader(stack, grpcurl), serve) as address:
        [text] = json.loads(run(call.replace("localhost:5001", address)))["predictions"]
    assert isinstance(text, str)
    assert "\n\n" not in text
    request = GenerateRequest(
        model_uri=f"{stack.folder.as_uri()}/artifacts/planned~export-model/model", prompt="The ", max_tokens=60, seed=1,
        sampling=SamplingConfig(temperature=0.8), stop=["\n\n"],
    )  # fmt: skip
    with connect("trainer", stack.client) as trainer:
        assert text == "".join(piece.text for piece in trainer.stream("Generate", request)), "one seed, one text"


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
