"""Which events the reconciler publishes again: held against a plain reading of everything that there is."""

import random
from dataclasses import dataclass

import pytest
import sqlalchemy as sql

from gpt2.jobs.v1 import job_pb2
from gpt2_common.database import METADATA, open_database
from gpt2_common.events.outbox import list_pending_events, remove_published
from gpt2_common.jobs.cancelled_runs import Cancellation, mark_cancelled, unmark_cancelled
from gpt2_common.jobs.handovers import complete_handover_to, count_waiting_runs
from gpt2_common.jobs.reconciler import Reconciler
from gpt2_common.jobs.rows import insert_job, update_job
from gpt2_common.jobs.store import JobStore
from gpt2_common.lease import Lease, LeaseHolder

Job = job_pb2.Job
SECONDS = 60.0
OWN, OTHER = "ImportFiles", "TrainModel"
HANDOVERS = METADATA.tables["handovers"]


@dataclass
class Case:
    """A job that has ended, and what became of its run since."""

    job_id: str
    state: int
    start: str
    """The next stage's start call; empty: there is none."""
    started: bool
    """Whether the next stage was started."""
    cancelled: bool
    waits: bool
    """Whether its event is still in the outbox."""
    old: bool
    """Whether it ended longer ago than events take."""
    event_seen: bool
    """Whether an event of the next stage was received."""

    @property
    def run_id(self) -> str:
        return self.job_id.partition("/")[0]

    def is_pending(self) -> bool:
        return bool(self.state == Job.STATE_SUCCEEDED and self.start and not self.started and not self.event_seen)

    def is_to_be_published(self) -> bool:
        return self.is_pending() and self.old and not self.cancelled and not self.waits


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.process)])
def store(request, tmp_path):
    sqlite = f"sqlite:///{tmp_path / 'jobs.db'}"
    with open_database(sqlite if request.param == "sqlite" else request.getfixturevalue("postgresql")) as engine:
        with engine.begin() as connection:
            for table in METADATA.sorted_tables:
                connection.execute(table.delete())
        yield JobStore(engine, "exporter", 1000, LeaseHolder.this_process(30.0))


def make(store: JobStore, case: Case) -> None:
    """Writes what a case says into the database."""
    job = Job(job_id=case.job_id, run_id=case.run_id, service="exporter", kind=OWN, state=Job.STATE_RUNNING)
    if case.start:
        job.plan.stages.add(start=case.start, name="next")
    with store.engine.begin() as connection:
        insert_job(connection, job, b"")
        ended = Job()
        ended.CopyFrom(job)
        ended.state = case.state
        update_job(connection, job, ended)
        if case.started and case.start == OWN:
            following = Job(job_id=f"{case.run_id}/next", run_id=case.run_id, service="exporter", kind=OWN)
            insert_job(connection, following, b"")
    if case.cancelled:
        mark_cancelled(store.engine, "exporter", case.run_id, Cancellation("ann", "enough"))
    waiting = [
        item for item in list_pending_events(store.engine, "/gpt2/exporter", 1000) if item.event.key == case.run_id
    ]
    if not case.waits:
        remove_published(store.engine, [item.position for item in waiting])
    if case.event_seen:
        complete_handover_to(store.engine, "exporter", f"{case.run_id}/next")


def advance(store: JobStore, seconds: float, *job_ids: str) -> None:
    """Lets time pass for some handovers; for all where none is named."""
    passed = {"due": HANDOVERS.c.due - seconds, "ended": HANDOVERS.c.ended - seconds}
    query = HANDOVERS.update().values(passed)
    with store.engine.begin() as connection:
        connection.execute(query.where(HANDOVERS.c.job_id.in_(job_ids)) if job_ids else query)


def publish_all(store: JobStore) -> list:
    """Empties the outbox, as the relay does. Returns its events."""
    waiting = list_pending_events(store.engine, "/gpt2/exporter", 1000)
    remove_published(store.engine, [item.position for item in waiting])
    return [item.event for item in waiting]


@pytest.fixture
def reconcile(store):
    """Makes the reconciler of a service whose peers have the jobs named."""

    def make_one(peers: frozenset[str] = frozenset(), reachable: bool = True) -> Reconciler:
        lease = Lease(store.engine, "reconciler exporter", LeaseHolder.this_process(30.0))
        return Reconciler(
            store, [OWN], lambda _start, job_id: job_id in peers if reachable else None, SECONDS, lease, lambda: None
        )

    return make_one


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in (1, 2))])
def test_the_events_that_are_published_again_are_those_whose_run_would_wait_for_ever(store, reconcile, seed):
    dice = random.Random(seed)
    cases = [
        Case(
            job_id=f"run-{number}/first",
            state=dice.choice((Job.STATE_SUCCEEDED, Job.STATE_SUCCEEDED, Job.STATE_FAILED, Job.STATE_CANCELLED)),
            start=dice.choice((OWN, OTHER, OTHER, "")),
            started=dice.random() < 0.3,
            cancelled=dice.random() < 0.2,
            waits=dice.random() < 0.2,
            old=dice.random() < 0.7,
            event_seen=dice.random() < 0.2,
        )
        for number in range(60)
    ]
    for case in cases:
        make(store, case)
    advance(store, SECONDS, *(case.job_id for case in cases if case.old))
    peers = frozenset(f"{case.run_id}/next" for case in cases if case.started and case.start == OTHER)
    expected = {case.job_id for case in cases if case.is_to_be_published()}
    assert expected
    # Of these, later stages cannot be corrected; those behind a peer that cannot be asked may be started, or not.
    for reachable in (True, False):
        reconciler = reconcile(peers, reachable)
        waiting = {job.job_id for case in cases for job in reconciler.waiting_jobs(case.run_id)}
        unknown = {case.job_id for case in cases if case.start == OTHER and case.state == Job.STATE_SUCCEEDED}
        unknown -= {case.job_id for case in cases if case.event_seen or reachable}
        assert waiting == unknown | {case.job_id for case in cases if case.is_pending()}
    published = reconcile(peers).reconcile()
    assert {job.job_id for job in published} == expected
    assert len(published) == len(expected)
    assert not reconcile(peers).reconcile()
    # What was found to have been started is forgotten, and never looked at again.
    with store.engine.connect() as connection:
        kept = set(connection.execute(sql.select(HANDOVERS.c.job_id)).scalars())
    started = {case.job_id for case in cases if case.started and case.old and not case.cancelled}
    assert not kept & started


def test_an_event_comes_again_as_it_was_and_ever_less_often_until_the_next_stage_is_known(store, reconcile):
    case = Case("run/first", Job.STATE_SUCCEEDED, OTHER, False, False, True, False, False)
    make(store, case)
    original = publish_all(store)[-1]
    original_parts = (original.id, original.source, original.key, original.data)
    reconciler = reconcile(reachable=False)
    assert not reconciler.reconcile()
    gaps = []
    for _ in range(9):
        gap = 0
        while not reconciler.reconcile():
            advance(store, SECONDS)
            gap += 1
        gaps.append(gap)
        [again] = publish_all(store)
        assert (again.id, again.source, again.key, again.data) == original_parts
    assert gaps == [1, 1, 2, 4, 8, 16, 32, 60, 60]
    waiting = count_waiting_runs(store.engine, "exporter", SECONDS)
    assert waiting.count == 1
    assert waiting.oldest_seconds >= sum(gaps) * SECONDS
    complete_handover_to(store.engine, "exporter", "run/next")
    assert count_waiting_runs(store.engine, "exporter", SECONDS).count == 0


def test_a_run_that_is_continued_is_published_at_once_also_after_it_was_cancelled(store, reconcile):
    make(store, Case("run/first", Job.STATE_SUCCEEDED, OTHER, False, True, False, False, False))
    make(store, Case("else/first", Job.STATE_SUCCEEDED, OTHER, False, False, False, False, False))
    assert not reconcile().reconcile()
    unmark_cancelled(store.engine, "exporter", "run")
    assert [job.job_id for job in reconcile().publish_run("run")] == ["run/first"]
    assert not reconcile().publish_run("run"), "it waits in the outbox"
    publish_all(store)
    assert not reconcile(frozenset({"run/next"})).publish_run("run"), "it was started"
    assert not reconcile(reachable=False).publish_run("run"), "it was known to have been started"
    # So a run that had lost its event before handovers were noted is found too.
    assert [job.job_id for job in reconcile().publish_run("run")] == ["run/first"]
