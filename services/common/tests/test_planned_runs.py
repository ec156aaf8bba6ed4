"""How two services carry out the plan of a run by events: decided in memory, without processes, servers or brokers."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack

import pytest
import sqlalchemy as sql
from event_bus import InMemoryEventBus
from google.protobuf.struct_pb2 import Struct
from in_memory_service import InMemoryService

from gpt2.events.v1 import events_pb2
from gpt2.exporter.v1.exporter_service_pb2 import ImportFilesRequest
from gpt2.jobs.v1 import job_pb2
from gpt2.tokenizer.v1.tokenizer_service_pb2 import TrainTokenizerRequest
from gpt2_common.database import open_database
from gpt2_common.errors import FailedPrecondition, InvalidRequest
from gpt2_common.identity import Identity, set_caller
from gpt2_common.jobs.corrections import read_corrections

Job = job_pb2.Job


class Pair:
    """An exporter and a tokenizer that hear of each other by events alone."""

    def __init__(self, engines: list[sql.Engine], queue_limit: int) -> None:
        self.bus = InMemoryEventBus()
        self.exporter = InMemoryService("exporter", "ImportFiles", engines[0], self.bus)
        self.tokenizer = InMemoryService("tokenizer", "TrainTokenizer", engines[1], self.bus, queue_limit)

    async def submit(self, run_id: str, *stages: dict) -> Job:
        plan = job_pb2.RunPlan()
        for number, request in enumerate(stages):
            plan.stages.add(start="TrainTokenizer", name=f"train-{number}").request.update(request)
        options = job_pb2.JobOptions(run_id=run_id, plan=plan)
        return await self.exporter.start(ImportFilesRequest(uris=["file:///texts"], job=options))

    async def deliver(self) -> None:
        await asyncio.to_thread(self.bus.deliver_all)

    def planned(self, run_id: str) -> list[tuple[str, str]]:
        """The run's jobs in the tokenizer, oldest first."""
        jobs, _ = self.tokenizer.store.list_jobs(run_id)
        return [(job.job_id.partition("/")[2], Job.State.Name(job.state)) for job in reversed(jobs)]


@pytest.fixture
def run(tmp_path) -> Iterator[Callable[..., None]]:
    """Runs a scenario with two services."""
    with ExitStack() as stack:
        engines = [stack.enter_context(open_database(f"sqlite:///{tmp_path / name}.db")) for name in ("one", "two")]

        def start(scenario: Callable[[Pair], Awaitable[None]], queue_limit: int = 100) -> None:
            async def in_loop() -> None:
                await scenario(Pair(engines, queue_limit))

            asyncio.run(in_loop())

        yield start


def test_each_stage_starts_once_with_what_earlier_ones_have_made(run):
    async def scenario(pair: Pair) -> None:
        set_caller(Identity(actor="ann"))
        first = await pair.submit("run", {"vocabulary_size": 300}, {"vocabulary_size": 400})
        await pair.deliver()
        assert pair.planned("run") == []
        pair.exporter.succeed(first.job_id, "corpus")
        await pair.deliver()
        assert pair.planned("run") == [("train-0", "STATE_QUEUED")]
        stored = pair.tokenizer.store.get("run/train-0")
        request = TrainTokenizerRequest.FromString(stored.request)
        assert (request.corpus_uri, request.vocabulary_size) == ("file:///artifacts/corpus", 300)
        assert stored.job.actor == "ann"
        await asyncio.to_thread(pair.bus.redeliver, "tokenizer")
        pair.tokenizer.succeed("run/train-0", "tokenizer")
        await pair.deliver()
        assert pair.planned("run") == [("train-0", "STATE_SUCCEEDED"), ("train-1", "STATE_QUEUED")]
        changes = [events_pb2.JobStateChanged.FromString(event.data).job for event in pair.bus.published]
        assert [(job.job_id.partition("/")[2], Job.State.Name(job.state)) for job in changes] == [
            *(("import-files", state) for state in ("STATE_QUEUED", "STATE_RUNNING", "STATE_SUCCEEDED")),
            *(("train-0", state) for state in ("STATE_QUEUED", "STATE_RUNNING", "STATE_SUCCEEDED")),
            ("train-1", "STATE_QUEUED"),
        ]

    run(scenario)


def test_a_stage_that_finds_no_room_starts_when_there_is_some(run):
    async def scenario(pair: Pair) -> None:
        for name in ("one", "two"):
            job = await pair.submit(name, {})
            pair.exporter.succeed(job.job_id, "corpus")
        await pair.deliver()
        assert (len(pair.planned("one")), len(pair.planned("two"))) == (1, 0)
        pair.tokenizer.succeed("one/train-0", "tokenizer")
        await pair.deliver()
        assert pair.planned("two") == [("train-0", "STATE_QUEUED")]
        assert pair.bus.dead_letters == []

    run(scenario, queue_limit=1)


def test_a_cancelled_run_starts_no_stage_until_it_is_continued(run):
    async def scenario(pair: Pair) -> None:
        job = await pair.submit("run", {})
        await pair.tokenizer.jobs.cancel_run("run", "enough")
        pair.exporter.succeed(job.job_id, "corpus")
        await pair.deliver()
        assert pair.planned("run") == [("train-0", "STATE_CANCELLED")]
        [again] = await pair.tokenizer.jobs.continue_run("run")
        assert (again.state, again.attempt) == (Job.STATE_QUEUED, 0)

    run(scenario)


def test_a_run_whose_event_was_lost_is_continued_by_publishing_it_again(run):
    async def scenario(pair: Pair) -> None:
        job = await pair.submit("run", {})
        pair.exporter.succeed(job.job_id, "corpus")
        pair.bus.lose("tokenizer")
        await pair.deliver()
        assert pair.planned("run") == []
        assert [job.job_id for job in pair.exporter.reconciler().waiting_jobs("run")] == ["run/import-files"]
        assert [job.job_id for job in pair.exporter.reconciler().publish_run("run")] == ["run/import-files"]
        await pair.deliver()
        assert pair.planned("run") == [("train-0", "STATE_QUEUED")]
        # The exporter has seen the event of the stage that was started.
        assert pair.exporter.reconciler().waiting_jobs("run") == []

    run(scenario)


def test_a_failed_stage_is_corrected_and_the_run_goes_to_its_end(run):
    async def scenario(pair: Pair) -> None:
        job = await pair.submit("run", {"vocabulary_size": 300}, {})
        pair.exporter.succeed(job.job_id, "corpus")
        await pair.deliver()
        with pytest.raises(FailedPrecondition, match="QUEUED"):
            await correct(pair, vocabulary_size=400)
        pair.tokenizer.fail("run/train-0")
        with pytest.raises(InvalidRequest, match=r"train-0\.vocabulary_size"):
            await correct(pair, vocabulary_size=-1)
        await correct(pair, vocabulary_size=400)
        await pair.tokenizer.jobs.continue_run("run")
        request = TrainTokenizerRequest.FromString(pair.tokenizer.store.get("run/train-0").request)
        assert request.vocabulary_size == 400
        pair.tokenizer.succeed("run/train-0", "tokenizer")
        await pair.deliver()
        assert pair.planned("run") == [("train-0", "STATE_SUCCEEDED"), ("train-1", "STATE_QUEUED")]

    run(scenario)


async def correct(pair: Pair, **fields: object) -> None:
    changes = Struct()
    changes.update(fields)
    await pair.tokenizer.jobs.correct_run("run", read_corrections({"train-0": changes}), [], validate_only=False)


def test_a_stage_with_a_wrong_request_is_refused_in_its_job_and_stops_no_other_run(run):
    async def scenario(pair: Pair) -> None:
        job = await pair.submit("good", {})
        options = job_pb2.JobOptions(job_id="bad/import-files", run_id="bad")
        plan = job_pb2.RunPlan()
        plan.stages.add(start="TrainTokenizer", name="train-0").request.update({"vocabulary_size": "many"})
        request = ImportFilesRequest(uris=["file:///texts"], job=options)
        await pair.exporter.start(request)
        # As a version of the exporter with other checks would have accepted it.
        pair.exporter.store.change("bad/import-files", lambda job: job.plan.CopyFrom(plan))
        for job_id in ("bad/import-files", job.job_id):
            pair.exporter.succeed(job_id, "corpus")
        await pair.deliver()
        assert pair.planned("bad") == [("train-0", "STATE_FAILED")]
        assert "vocabulary_size" in pair.tokenizer.store.get("bad/train-0").job.error.message
        assert pair.planned("good") == [("train-0", "STATE_QUEUED")]

    run(scenario)
