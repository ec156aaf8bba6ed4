"""What corrections make of a run's jobs: in their store, by the manager of the jobs, without a process for the work."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gpt2.events.v1 import events_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2.tokenizer.v1.tokenizer_service_pb2 import EncodeCorpusRequest
from gpt2_catalogue import catalogue
from gpt2_common.artifacts import ArtifactStore
from gpt2_common.database import open_database
from gpt2_common.errors import FailedPrecondition, InvalidRequest
from gpt2_common.identity import Identity, set_caller
from gpt2_common.jobs.checks import RequestChecks, StageChecks
from gpt2_common.jobs.corrections import correct_job, write_corrections
from gpt2_common.jobs.definition import JobKind, Work
from gpt2_common.jobs.manager import JobManager
from gpt2_common.jobs.stage_starter import StageStarter
from gpt2_common.jobs.store import JobStore
from gpt2_common.lease import LeaseHolder
from gpt2_common.peers import Peers
from gpt2_common.settings import ServiceSettings
from gpt2_contracts.events import CloudEvent

Job = job_pb2.Job
ENCODE = JobKind(stage=catalogue().stages["EncodeCorpus"], work=Work("never:run"), settings=ServiceSettings)


class Tokenizer:
    """The jobs of a service that takes EncodeCorpus, and starts none of them."""

    def __init__(self, engine, settings):
        self.store = JobStore(engine, "tokenizer", 100, LeaseHolder.this_process(30.0))
        artifacts = ArtifactStore("file:///artifacts", ["file:///"], Path("scratch"))
        checks = {"EncodeCorpus": StageChecks(inputs=lambda _: self.missing)}
        self.checks = RequestChecks([ENCODE.stage], checks, Peers(settings), artifacts)
        self.jobs = JobManager(self.store, [ENCODE], settings, lambda: None, lambda *_: None, self.checks)
        self.missing = []
        """What is wrong with the inputs."""

    async def receive(self, before: Job) -> Job:
        """Handles the event of a job that has succeeded. Returns the job that it starts."""
        event = CloudEvent(
            id=f"event of {before.job_id}",
            source="/gpt2/tokenizer",
            type="gpt2.events.v1.JobStateChanged",
            subject=before.job_id,
            key=before.run_id,
            time=datetime.now(UTC),
            data=events_pb2.JobStateChanged(job=before).SerializeToString(),
        )
        starter = StageStarter(self.jobs, asyncio.get_running_loop())
        await asyncio.to_thread(starter.handle, event)
        return self.store.get(f"{before.run_id}/{before.plan.stages[0].name}").job

    async def correct(self, run_id: str, **stages) -> None:
        await self.jobs.correct_run(run_id, stages, [], validate_only=False)

    def request(self, job_id: str) -> EncodeCorpusRequest:
        return EncodeCorpusRequest.FromString(self.store.get(job_id).request)


def succeeded(run_id: str, *stages: tuple[str, dict]) -> Job:
    """A job of ann that has made a corpus and a tokenizer, with what comes after it."""
    job = Job(job_id=f"{run_id}/first", run_id=run_id, state=Job.STATE_SUCCEEDED, actor="ann")
    for name in ("corpus", "tokenizer"):
        job.outputs.add(name=name, kind=name, uri=f"file:///artifacts/{name}")
    for name, request in stages:
        job.plan.stages.add(start="EncodeCorpus", name=name).request.update(request)
    return job


def inputs(job: Job) -> list[str]:
    return [item.uri for item in job.inputs]


@pytest.fixture
def tokenizer(tmp_path):
    settings = ServiceSettings(artifact_root=str(tmp_path), database_url=f"sqlite:///{tmp_path / 'jobs.db'}")
    with open_database(settings.database_url) as engine:
        yield Tokenizer(engine, settings)


def test_a_request_that_was_never_read_and_fields_that_are_taken_away_are_corrected(tokenizer):
    async def run() -> None:
        wrong = {"validation_fraction": "much", "engine": "ENGINE_NONE", "tokenizer_uri": "file:///elsewhere"}
        refused = await tokenizer.receive(succeeded("run", ("encode", wrong), ("again", {"beam_options": ["--x=1"]})))
        assert (refused.state, refused.actor) == (Job.STATE_FAILED, "ann")
        with pytest.raises(FailedPrecondition, match="give a correction of the stage"):
            await tokenizer.jobs.continue_run("run")
        set_caller(Identity(actor="bob"))
        for part in ({"encode": {"validation_fraction": 0.5}}, {"again": {"beam_options": None}}):
            with pytest.raises(InvalidRequest) as error:
                await tokenizer.correct("run", **part)
            assert "encode.engine" in str(error.value)
        assert tokenizer.store.get("run/encode").job == refused

        await tokenizer.correct("run", encode={"validation_fraction": 0.5, "engine": None})
        corrected = tokenizer.store.get("run/encode").job
        assert corrected.actor == "bob"
        assert corrected.plan == refused.plan
        request = tokenizer.request("run/encode")
        assert (request.job.job_id, request.job.run_id) == ("run/encode", "run")
        assert (request.corpus_uri, request.tokenizer_uri) == ("file:///artifacts/corpus", "file:///elsewhere")

        assert inputs(corrected) == ["file:///artifacts/corpus", "file:///elsewhere"]
        await tokenizer.correct("run", encode={"tokenizer_uri": None})
        assert tokenizer.request("run/encode").tokenizer_uri == "file:///artifacts/tokenizer"
        corrected = tokenizer.store.get("run/encode").job
        assert inputs(corrected) == ["file:///artifacts/corpus", "file:///artifacts/tokenizer"]
        [queued] = await tokenizer.jobs.continue_run("run")
        assert (queued.state, queued.attempt) == (Job.STATE_QUEUED, 0)

    asyncio.run(run())


def test_a_stage_that_was_refused_for_what_was_missing_is_continued_as_it_is(tokenizer):
    async def run() -> None:
        tokenizer.missing = [("corpus_uri", "is no artifact")]
        refused = await tokenizer.receive(succeeded("run", ("encode", {"validation_fraction": 0.5})))
        assert (refused.state, refused.error.message) == (Job.STATE_FAILED, "corpus_uri: is no artifact")
        tokenizer.missing = []
        [queued] = await tokenizer.jobs.continue_run("run")
        assert (queued.state, queued.actor) == (Job.STATE_QUEUED, "ann")

    asyncio.run(run())


def test_corrections_are_written_all_or_none(tokenizer):
    async def run() -> None:
        jobs = [await tokenizer.receive(succeeded("run", (name, {"validation_fraction": 3}))) for name in ("a", "b")]
        assert [job.state for job in jobs] == 2 * [Job.STATE_FAILED]
        before = [tokenizer.store.get(job.job_id) for job in jobs]
        right = {"a": {"validation_fraction": 0.1}, "b": {"validation_fraction": 0.2}}
        changes = [await correct_job(ENCODE, stored, right, tokenizer.checks) for stored in before]
        # Between reading and writing, another call queues the second one.
        tokenizer.store.retry("run/b")
        with pytest.raises(FailedPrecondition, match="run/b was changed meanwhile"):
            write_corrections(tokenizer.store, changes)
        assert tokenizer.store.get("run/a") == before[0]

        with pytest.raises(FailedPrecondition, match="stage b is QUEUED"):
            await tokenizer.correct("run", **right)
        assert tokenizer.store.get("run/a") == before[0]
        set_caller(Identity(actor="bob"))
        await tokenizer.correct("run", a=right["a"])
        assert tokenizer.request("run/a").validation_fraction == 0.1
        assert [tokenizer.store.get(job.job_id).job.actor for job in jobs] == ["bob", "ann"]

    asyncio.run(run())


def test_a_stage_is_not_corrected_while_one_before_it_is_at_work(tokenizer):
    async def run() -> None:
        first = await tokenizer.receive(succeeded("run", ("a", {}), ("b", {"validation_fraction": 0.2})))
        assert first.state == Job.STATE_QUEUED
        assert [(item.name, item.kind, item.uri, item.digest) for item in first.inputs] == [
            ("corpus", "corpus", "file:///artifacts/corpus", ""),
            ("tokenizer", "tokenizer", "file:///artifacts/tokenizer", ""),
        ]
        with pytest.raises(FailedPrecondition, match="stage b cannot be corrected, as run/a before it is QUEUED"):
            await tokenizer.correct("run", b={"validation_fraction": 0.1})
        assert tokenizer.store.get("run/a").job == first
        await tokenizer.jobs.cancel_run("run", "")
        await tokenizer.correct("run", b={"validation_fraction": 0.1})
        assert tokenizer.store.get("run/a").job.plan.stages[0].request["validation_fraction"] == 0.1

        # A stage whose event comes when its run was cancelled can be corrected before it has done anything.
        await tokenizer.jobs.cancel_run("late", "")
        created = await tokenizer.receive(succeeded("late", ("a", {"validation_fraction": 0.2})))
        assert created.state == Job.STATE_CANCELLED
        await tokenizer.correct("late", a={"validation_fraction": 0.1})
        [queued] = await tokenizer.jobs.continue_run("late")
        assert (queued.state, tokenizer.request("late/a").validation_fraction) == (Job.STATE_QUEUED, 0.1)

    asyncio.run(run())
