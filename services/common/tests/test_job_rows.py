"""What job stores keep of a job: all of it, wherever its plan is stored, and whichever version has written it."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sql
from earlier_rows import earlier_row

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.events.v1 import events_pb2
from gpt2.exporter.v1 import exporter_service_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2.tokenizer.v1.tokenizer_service_pb2 import EncodeCorpusRequest
from gpt2_common.database import METADATA, open_database
from gpt2_common.events.outbox import list_pending_events
from gpt2_common.jobs.creation import create_job
from gpt2_common.jobs.outcome import Succeeded
from gpt2_common.jobs.rows import JOBS
from gpt2_common.jobs.run_upgrade import complete_runs
from gpt2_common.jobs.store import JobStore
from gpt2_common.lease import LeaseHolder

Job = job_pb2.Job
MARK = "a request that is long"
MADE = artifact_pb2.Artifact(name="corpus", uri="file:///new")
OLD_JOBS = """
CREATE TABLE jobs (
    position {serial}, service VARCHAR(32) NOT NULL, job_id VARCHAR(200) NOT NULL,
    run_id VARCHAR(200) NOT NULL, kind VARCHAR(64) NOT NULL, state INTEGER NOT NULL,
    revision BIGINT NOT NULL, job {bytes} NOT NULL, request {bytes} NOT NULL, owner VARCHAR(300),
    leased_until FLOAT, deaths INTEGER, mark VARCHAR(300),
    PRIMARY KEY (position), UNIQUE (service, job_id)
);
CREATE INDEX ix_jobs_run_id ON jobs (run_id);
CREATE INDEX ix_jobs_state ON jobs (state);
"""
OLD_TYPES = {
    "sqlite": {"serial": "INTEGER NOT NULL", "bytes": "BLOB"},
    "postgresql": {"serial": "SERIAL NOT NULL", "bytes": "BYTEA"},
}


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.process)])
def url(request, tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'jobs.db'}" if request.param == "sqlite" else request.getfixturevalue("postgresql")


@pytest.fixture
def store(url) -> Iterator[JobStore]:
    with open_database(url) as engine:
        with engine.begin() as connection:
            for table in METADATA.sorted_tables:
                connection.execute(table.delete())
        yield JobStore(engine, "exporter", 10_000, LeaseHolder.this_process(30.0))


def a_plan(*stages: str, setting: str = "as planned") -> job_pb2.RunPlan:
    plan = job_pb2.RunPlan()
    for name in stages:
        plan.stages.add(start="ImportFiles", name=name).request.update({"uris": [MARK, name], "setting": setting})
    for name in ("corpus", "tokenizer"):
        plan.artifacts.add(name=name, kind=name, uri=f"file:///{name}").properties.update({"made": "before"})
    return plan


def create(store: JobStore, name: str, plan: job_pb2.RunPlan | None) -> Job:
    options = job_pb2.JobOptions(job_id=f"run/{name}", run_id="run", plan=plan)
    return create_job(store, "ImportFiles", exporter_service_pb2.ImportFilesRequest(uris=["/x"], job=options))


def published(store: JobStore) -> dict[tuple[str, int], Job]:
    events = [waiting.event for waiting in list_pending_events(store.engine, "/gpt2/exporter", 1000)]
    jobs = [events_pb2.JobStateChanged.FromString(event.data).job for event in events]
    return {(job.job_id, job.revision): job for job in jobs}


def everything_stored(store: JobStore) -> bytes:
    with store.engine.connect() as connection:
        rows = [row for name in ("jobs", "runs") for row in connection.execute(sql.select(METADATA.tables[name]))]
    return b"".join(bytes(value) for row in rows for value in row if isinstance(value, bytes | memoryview))


def test_a_plan_is_stored_once_a_run_and_every_job_has_its_part_of_it(store):
    plans = {
        "first": a_plan("second", "third"),
        "second": a_plan("third"),
        "third": a_plan(),
        "alone": None,
    }
    for name, plan in plans.items():
        create(store, name, plan)
        # Asked for again, it is the same request and plan.
        create(store, name, plan)
    assert everything_stored(store).count(MARK.encode()) == 2
    plans["another"] = a_plan("third", setting="another")
    plans["longer"] = a_plan("zeroth", "second", "third")
    for name in ("another", "longer"):
        create(store, name, plans[name])
    events = published(store)
    for name, plan in plans.items():
        job_id = f"run/{name}"
        job = store.begin(job_id)
        store.progress(job_id, job_pb2.Progress(phase="reading", done=1))
        assert store.finish(job_id, Succeeded([MADE])) == store.get(job_id).job
        events |= published(store)
        job = store.get(job_id).job
        for seen in (job, events[job_id, 1], events[job_id, job.revision]):
            assert seen.HasField("plan") == (plan is not None)
            assert seen.plan == (plan or job_pb2.RunPlan())
        assert events[job_id, job.revision] == job
    whole, _ = store.list_jobs("run", whole=True)
    assert [job.plan for job in reversed(whole)] == [plan or job_pb2.RunPlan() for plan in plans.values()]
    assert whole == [store.get(job.job_id).job for job in whole]
    for basic, job in zip(store.list_jobs("run")[0], whole, strict=True):
        assert [stage.name for stage in basic.plan.stages] == [stage.name for stage in job.plan.stages]
        assert MARK.encode() not in basic.SerializeToString()
        assert (basic.outputs, basic.revision, basic.state) == (job.outputs, job.revision, job.state)


def test_a_plan_that_is_changed_is_changed_for_its_job_alone(store):
    create(store, "first", a_plan("second", "third"))
    create(store, "second", a_plan("third"))

    def correct(job: Job) -> None:
        job.plan.stages[-1].request.update({"setting": "corrected"})

    changed = store.change("run/first", correct)
    assert changed.plan.stages[1].request["setting"] == "corrected"
    assert store.get("run/first").job == changed
    assert store.begin("run/first").plan == changed.plan
    assert store.get("run/second").job.plan == a_plan("third")


def test_a_job_records_its_inputs_and_their_digests_when_it_has_succeeded(store):
    found = {"file:///c": "digest of c"}
    store = JobStore(
        store.engine, "tokenizer", 10_000, LeaseHolder.this_process(30.0), lambda artifact: found.get(artifact.uri, "")
    )
    request = EncodeCorpusRequest(corpus_uri="file:///c", tokenizer_uri="file:///t")
    request.job.job_id = "run/encode"
    created = create_job(store, "EncodeCorpus", request)
    named = [("corpus", "corpus", "file:///c"), ("tokenizer", "tokenizer", "file:///t")]
    assert [(item.name, item.kind, item.uri) for item in created.inputs] == named
    assert not any(item.digest for item in store.begin("run/encode").inputs)
    ended = store.finish("run/encode", Succeeded([MADE]))
    # What cannot be read any more does not fail the job.
    assert [item.digest for item in ended.inputs] == ["digest of c", ""]
    assert [job.inputs for job in store.list_jobs("run")[0]] == [ended.inputs]
    events = [waiting.event for waiting in list_pending_events(store.engine, "/gpt2/tokenizer", 1000)]
    assert events_pb2.JobStateChanged.FromString(events[-1].data).job == ended


def test_a_store_of_the_version_before_keeps_all_its_jobs(url):
    jobs = []
    for number in range(4500):
        job = Job(job_id=f"run-{number % 3000}/job-{number}", run_id=f"run-{number % 3000}", service="exporter")
        job.state, job.revision, job.kind = Job.STATE_SUCCEEDED, 7, "ImportFiles"
        job.create_time.FromSeconds(1_000_000 + number)
        if number % 2:
            job.plan.CopyFrom(a_plan("second", "third"))
        jobs.append(job)
    jobs[10].state = Job.STATE_QUEUED
    with open_database(url) as engine, engine.begin() as connection:
        METADATA.drop_all(connection)
        for statement in OLD_JOBS.format(**OLD_TYPES[engine.dialect.name]).split(";")[:-1]:
            connection.exec_driver_sql(statement)
        old = sql.Table("jobs", sql.MetaData(), autoload_with=connection)
        connection.execute(old.insert(), [earlier_row(job) for job in jobs])
    with open_database(url) as engine:
        store = JobStore(engine, "exporter", 10_000, LeaseHolder.this_process(30.0))
        complete_runs(engine, "exporter")
        assert runs(store) == expected(jobs)
        assert store.get(jobs[1].job_id).job == jobs[1]
        # An old row that is written again, and what replicas of the version before write meanwhile.
        assert store.begin(jobs[10].job_id).plan == jobs[10].plan
        late = Job(job_id="run-5/late", run_id="run-5", service="exporter", state=Job.STATE_RUNNING, revision=1)
        late.plan.CopyFrom(a_plan("second"))
        with engine.begin() as connection:
            connection.execute(JOBS.insert(), [earlier_row(late)])
        store.change("run-5/late", lambda job: job.warnings.append("found"))
        assert store.get("run-5/late").job.plan == late.plan
        assert "run-5/late" in [job.job_id for job in store.list_runs(["run-5"])[0][0].jobs]
        with engine.begin() as connection:
            late.job_id, late.revision = "run-6/late", 1
            late.run_id = "run-6"
            connection.execute(JOBS.insert(), [earlier_row(late)])
            changed = store.get(jobs[10].job_id).job
            changed.state, changed.revision = Job.STATE_FAILED, changed.revision + 1
            values = {"job": changed.SerializeToString(), "state": changed.state, "revision": changed.revision}
            connection.execute(JOBS.update().where(JOBS.c.job_id == changed.job_id).values(**values, plan=None))
    with open_database(url) as engine:
        store = JobStore(engine, "exporter", 10_000, LeaseHolder.this_process(30.0))
        complete_runs(engine, "exporter")
        [six], _ = store.list_runs(["run-6"])
        assert [job.job_id for job in six.jobs] == ["run-6/job-6", "run-6/job-3006", "run-6/late"]
        assert six.job_count == 3
        [ten], _ = store.list_runs(["run-10"])
        assert ten.jobs[0].state == Job.STATE_FAILED


def runs(store: JobStore) -> list[tuple[str, list[str], int]]:
    found, place = [], None
    while True:
        page, place = store.list_runs(limit=700, after=place)
        found += [(run.run_id, [job.job_id for job in run.jobs], run.job_count) for run in page]
        if place is None:
            return found


def expected(jobs: list[Job]) -> list[tuple[str, list[str], int]]:
    by_run: dict[str, list[str]] = {}
    for job in jobs:
        by_run.setdefault(job.run_id, []).append(job.job_id)
    return [(run_id, ids, len(ids)) for run_id, ids in reversed(by_run.items())]
