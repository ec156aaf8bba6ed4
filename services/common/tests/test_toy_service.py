"""A fifth service with a stage, of which `gpt2_common` knows nothing, validates, runs and plans it as the others do.

A stage touches its proto, its work function and the line of its service that names it (here `toy/`), and their tests.
Pipelines, runners and commands derive theirs: `orchestration/tests/test_toy_stage.py`.
"""

import os
import re
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import status_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

import gpt2_common
from gpt2.jobs.v1 import job_pb2, jobs_service_pb2
from gpt2_catalogue import build_catalogue, catalogue

from .brokers import EmbeddedBroker
from .conftest import HERE, FakeService

Job = job_pb2.Job
PROTOS = HERE.parents[2] / "protos"
WORD = re.compile(r"gpt2\.(?!jobs|events|artifacts)\w+\.v1")


class ToyService(FakeService):
    """The toy as a process; its stage is known by what reflection shows."""

    program = "toy/toy_service.py"

    @property
    def stage(self):
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(self.channel))
        return build_catalogue([pool.FindServiceByName("gpt2.toy.v1.ToyService")]).stages["CountWords"]

    def count_words(self, **request) -> Job:
        stage = self.stage
        call = self.channel.unary_unary(
            "/gpt2.toy.v1.ToyService/CountWords", stage.request.SerializeToString, stage.response.FromString
        )
        return Job.FromString(call(stage.request(**request), timeout=10).job.SerializeToString())


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    """PYTHONPATH with the toy and its generated stub."""
    folder = tmp_path_factory.mktemp("stubs")
    sources = folder / "sources" / "gpt2" / "toy" / "v1"
    sources.mkdir(parents=True)
    (sources / "toy_service.proto").write_bytes((HERE / "toy" / "toy_service.proto").read_bytes())
    includes = [folder / "sources", PROTOS, files("grpc_tools") / "_proto", Path(status_pb2.__file__).parents[2]]
    options = [*(f"-I{include}" for include in includes), f"--python_out={folder}", "gpt2/toy/v1/toy_service.proto"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options], check=True)
    for package in ("toy", "toy/v1"):
        (folder / "gpt2" / package / "__init__.py").touch()
    return os.pathsep.join(map(str, (HERE, HERE / "toy", folder)))


@pytest.fixture(scope="module")
def services(path, tmp_path_factory):
    """A service that makes corpora, and the toy, which share a broker."""
    folder = tmp_path_factory.mktemp("services")
    broker = EmbeddedBroker(folder).start()
    settings = {"PYTHONPATH": path, "GPT2_KAFKA_BOOTSTRAP_SERVERS": broker.address}
    toy = ToyService(folder, **settings, GPT2_DATABASE_URL=f"sqlite:///{folder / 'toy.db'}").start()
    first = FakeService(folder, **settings, GPT2_TOY_ADDRESS=f"127.0.0.1:{toy.port}").start()
    yield first.wait_until_ready(), toy.wait_until_ready()
    for process in (first, toy):
        process.kill()
    broker.stop()


def plan(**request) -> job_pb2.RunPlan:
    planned = job_pb2.RunPlan()
    planned.stages.add(start="CountWords").request.update(request)
    return planned


@pytest.mark.process
def test_its_stage_is_validated(services):
    _, toy = services
    request = jobs_service_pb2.ValidateStageRequest(start="CountWords", artifacts=["corpus"])
    assert not toy.jobs.ValidateStage(request, timeout=10).violations
    request = jobs_service_pb2.ValidateStageRequest(start="CountWords", artifacts=["model"])
    request.request.update({"min_length": -1, "words": 1})
    assert {(item.field, item.description) for item in toy.jobs.ValidateStage(request, timeout=10).violations} == {
        ("words", "unknown field; use one of job, corpus_uri, min_length"),
        ("min_length", "must be 1 or greater, not -1"),
        ("corpus_uri", "is required, as no stage before makes the artifact 'corpus'"),
    }


@pytest.mark.process
def test_its_job_runs_and_records_its_input(services):
    first, toy = services
    [corpus] = first.run("succeed", "to be or not").outputs
    started = toy.count_words(corpus_uri=corpus.uri, min_length=3)
    done = toy.watch(started.job_id)[-1]
    assert (done.service, done.kind, done.state) == ("toy", "CountWords", Job.STATE_SUCCEEDED)
    assert [(item.name, item.kind, item.uri, item.digest) for item in done.inputs] == [
        ("corpus", "corpus", corpus.uri, corpus.digest)
    ]
    assert [(item.name, item.kind, item.counts["words"]) for item in done.outputs] == [("words", "words", 1)]
    with pytest.raises(grpc.RpcError, match="corpus_uri: file:///etc is outside the allowed roots"):
        toy.count_words(corpus_uri="file:///etc")


@pytest.mark.process
def test_a_plan_that_ends_in_it_is_checked_by_it_and_hands_its_input_over(services):
    first, toy = services
    with pytest.raises(grpc.RpcError, match=r"job\.plan\.stages\[0\]\.request\.min_length: must be 1 or greater"):
        first.submit("succeed", run_id="wrong", plan=plan(min_length=-1))
    begun = first.run("succeed", "to be or not", run_id="run", plan=plan(min_length=2))
    assert not begun.warnings
    deadline = time.monotonic() + 60
    while not (jobs := toy.jobs.ListJobs(jobs_service_pb2.ListJobsRequest(run_id="run"), timeout=10).jobs):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    done = toy.watch(jobs[0].job_id)[-1]
    assert (done.job_id, done.state) == ("run/count-words", Job.STATE_SUCCEEDED)
    assert [item.digest for item in done.inputs] == [begun.outputs[0].digest]
    assert done.outputs[0].counts["words"] == 4


def test_common_knows_the_protos_of_no_service():
    assert "CountWords" not in catalogue().stages
    sources = Path(gpt2_common.__file__).parent.rglob("*.py")
    assert not {source.name for source in sources if WORD.search(source.read_text())}
