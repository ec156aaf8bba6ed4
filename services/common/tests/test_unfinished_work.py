"""What jobs leave behind: temporary files never, unfinished work for as long as the job may be continued."""

import os
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text

from gpt2.exporter.v1.exporter_service_pb2 import ImportFilesRequest
from gpt2.jobs.v1 import job_pb2, jobs_service_pb2
from gpt2_common.artifacts.work import WorkFolders
from gpt2_common.database import open_database
from gpt2_common.jobs.creation import create_job
from gpt2_common.jobs.store import JobStore
from gpt2_common.jobs.sweeper import WorkSweeper
from gpt2_common.lease import LeaseHolder

from .conftest import FakeService
from .test_jobs_as_processes import wait_for_file

Job = job_pb2.Job
HOUR = 3600.0
AT_ONCE = {"GPT2_KEEP_WORK_DAYS": "0"}


def work_of(folder: Path, job: str) -> Path:
    return folder / "artifacts" / job / ".work"


def wait_until_away(path: Path) -> None:
    deadline = time.monotonic() + 60
    while path.exists():
        assert time.monotonic() < deadline, f"{path} is still there"
        time.sleep(0.05)


@pytest.mark.parametrize("end", ["succeed", "fail", "die", "exit"])
def test_temporary_files_of_a_job_lie_in_its_own_folder_and_go_however_it_ends(service, tmp_path, end):
    service.run("litter", str(tmp_path / "path"), end, job_id="a")
    temporary = Path((tmp_path / "path").read_text())
    assert temporary.is_relative_to(work_of(tmp_path, "a"))
    wait_until_away(temporary.parent)
    # What is no temporary file is kept to resume from, but not by a job that has succeeded.
    assert (work_of(tmp_path, "a") / "finished-part").exists() == (end != "succeed")


def test_temporary_files_of_a_job_whose_service_was_killed_go_with_the_next_attempt(service, tmp_path):
    paths, flag = tmp_path / "path", tmp_path / "go"
    service.submit("litter", str(paths), "finish_when", str(flag), job_id="a")
    before = Path(wait_for_file(paths))
    service.kill()
    assert before.exists()
    paths.unlink()
    service.start().wait_until_ready()
    now = Path(wait_for_file(paths))
    assert not before.exists()
    assert now.exists()
    flag.touch()
    assert service.watch("a")[-1].state == Job.STATE_SUCCEEDED
    wait_until_away(work_of(tmp_path, "a"))


def test_a_job_whose_temporary_folder_cannot_be_made_fails_and_says_so(service, tmp_path):
    (tmp_path / "artifacts" / "a").mkdir(parents=True)
    work_of(tmp_path, "a").touch()
    failed = service.run("succeed", job_id="a")
    assert failed.state == Job.STATE_FAILED
    work_of(tmp_path, "a").unlink()
    service.submit("succeed", job_id="a", retry_failed=True)
    assert service.watch("a")[-1].state == Job.STATE_SUCCEEDED


def test_unfinished_work_is_kept_to_be_continued_and_deleted_when_its_time_is_over(make_service, tmp_path):
    service = make_service().start().wait_until_ready()
    service.run("litter", str(tmp_path / "path"), "fail", job_id="failed/a")
    service.submit("litter", str(tmp_path / "other-path"), "wait", str(tmp_path / "pid"), job_id="cancelled/a")
    wait_for_file(tmp_path / "pid")
    service.cancel("cancelled/a")
    assert service.watch("cancelled/a")[-1].state == Job.STATE_CANCELLED
    parts = [work_of(tmp_path, f"{run}~a") / "finished-part" for run in ("failed", "cancelled")]
    assert all(part.exists() for part in parts)
    service.stop()
    service.settings |= AT_ONCE
    service.start().wait_until_ready()
    for part in parts:
        wait_until_away(part.parent)
        # Nothing else was in the job's folder.
        wait_until_away(part.parents[1])
    # Later ones go too, without a restart.
    service.run("litter", str(tmp_path / "path"), "fail", job_id="later")
    wait_until_away(work_of(tmp_path, "later"))
    # A job whose work is gone begins anew.
    request = jobs_service_pb2.ContinueRunRequest(run_id="failed")
    [again] = service.jobs.ContinueRun(request, timeout=10).jobs
    assert service.watch(again.job_id)[-1].state == Job.STATE_FAILED


@pytest.fixture
def empty_database(postgresql):
    """Another database: other tests leave jobs in theirs, which these replicas would resume."""
    engine = create_engine(postgresql.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("CREATE DATABASE unfinished_work"))
    engine.dispose()
    return postgresql.rpartition("/")[0] + "/unfinished_work"


def test_work_of_a_job_under_way_in_another_replica_is_left_alone(empty_database, tmp_path):
    flag = tmp_path / "go"
    replicas = [FakeService(tmp_path, GPT2_DATABASE_URL=empty_database, **AT_ONCE).start() for _ in range(2)]
    try:
        for replica in replicas:
            replica.wait_until_ready()
        replicas[0].submit("litter", str(tmp_path / "path"), "finish_when", str(flag), job_id="under-way")
        temporary = Path(wait_for_file(tmp_path / "path"))
        for number in range(3):
            # Each that goes shows that a sweeper has looked through all folders since.
            replicas[number % 2].run("litter", str(tmp_path / "other-path"), "fail", job_id=f"over-{number}")
            wait_until_away(work_of(tmp_path, f"over-{number}"))
            assert temporary.exists()
        flag.touch()
        assert replicas[1].watch("under-way")[-1].state == Job.STATE_SUCCEEDED
    finally:
        for replica in replicas:
            replica.kill()


class Jobs:
    """A job store and its folders, without a service."""

    def __init__(self, engine: Engine, folder: Path, service: str = "fake") -> None:
        self.store = JobStore(engine, service, 10, LeaseHolder.this_process(30.0))
        self.folders = WorkFolders((folder / "artifacts").as_uri(), folder / "scratch")

    def add(self, job_id: str, state: int, hours_ago: float, changed_hours_ago: float) -> Path:
        """Makes a job that has ended some hours ago, if it has, and its folder. Returns the folder."""
        then = time.time() - hours_ago * HOUR
        request = ImportFilesRequest(uris=["x"], job=job_pb2.JobOptions(job_id=job_id, run_id="run"))
        create_job(self.store, "ImportFiles", request)

        def apply(job: Job) -> None:
            job.state = state
            if state not in (Job.STATE_QUEUED, Job.STATE_RUNNING):
                job.end_time.FromNanoseconds(int(then * 1e9))

        self.store.change(job_id, apply)
        work = self.folders.of(job_id)
        (work / "deep").mkdir(parents=True)
        (work / "deep" / "part").touch()
        changed = time.time() - changed_hours_ago * HOUR
        for path in (work / "deep" / "part", work / "deep", work):
            os.utime(path, (changed, changed))
        return work

    def sweep(self, keep_hours: float = 1) -> None:
        WorkSweeper(self.store, self.folders, keep_hours * HOUR).sweep()


@pytest.fixture
def jobs(tmp_path):
    with open_database(f"sqlite:///{tmp_path}/jobs.db") as engine:
        yield Jobs(engine, tmp_path)


@pytest.mark.parametrize("state", [Job.STATE_FAILED, Job.STATE_CANCELLED, Job.STATE_SUCCEEDED])
def test_work_goes_when_job_and_folder_are_old_and_not_before(jobs, state):
    old = jobs.add("old/a", state, 2, 2)
    new = jobs.add("new/a", state, 0.5, 2)
    # Such as that of a job of the same id of another service, which works in it now.
    touched = jobs.add("touched/a", state, 2, 0.5)
    jobs.sweep()
    assert [folder.exists() for folder in (old, new, touched)] == [False, True, True]
    assert not list(jobs.folders.of("old/a").parents[1].glob(".*"))


@pytest.mark.parametrize("state", [Job.STATE_QUEUED, Job.STATE_RUNNING])
def test_work_of_a_job_that_has_not_ended_stays_however_old_it_is(jobs, state):
    work = jobs.add("a", state, 1000, 1000)
    jobs.sweep()
    assert work.exists()


def test_folders_of_other_services_and_outputs_stay(jobs, tmp_path):
    work = jobs.add("a", Job.STATE_FAILED, 2, 2)
    (work.parent / "logs").mkdir()
    Jobs(jobs.store.engine, tmp_path, "another").sweep()
    assert work.exists()
    jobs.sweep()
    assert not work.exists()
    assert (work.parent / "logs").exists()


def test_what_a_sweeper_that_was_killed_had_put_away_is_deleted_by_the_next(jobs):
    work = jobs.add("a", Job.STATE_FAILED, 2, 2)
    jobs.folders.discard("a")
    assert not work.exists()
    [aside] = (work.parents[1]).glob(".*")
    jobs.sweep()
    assert not aside.exists()


def test_scratch_work_of_a_remote_root_is_swept_and_whole_downloads_stay(jobs, tmp_path):
    jobs.folders = WorkFolders("s3://bucket/artifacts", tmp_path / "scratch")
    work = jobs.add("run/a", Job.STATE_FAILED, 2, 2)
    whole, under_way, broken = (jobs.folders.downloads / name for name in ("digest", ".digest-new", ".digest-old"))
    for folder, hours in ((whole, 100), (under_way, 2), (broken, 100)):
        (folder / "part").mkdir(parents=True)
        then = time.time() - hours * HOUR
        for path in (folder / "part", folder):
            os.utime(path, (then, then))
    jobs.sweep()
    assert not work.exists()
    assert [folder.exists() for folder in (whole, under_way, broken)] == [True, True, False]


def test_a_job_cannot_be_continued_into_work_that_is_being_deleted(jobs):
    """The job is queued again just while its folder goes: it waits until it is gone."""
    work = jobs.add("a", Job.STATE_FAILED, 2, 2)
    queued: list[int] = []
    retry = threading.Thread(target=lambda: queued.append(jobs.store.retry("a").state))

    class Watched(WorkFolders):
        def discard(self, job_id: str) -> None:
            retry.start()
            retry.join(1)
            assert not queued
            super().discard(job_id)
            assert not queued

    folders = Watched(work.parents[1].as_uri(), work)
    WorkSweeper(jobs.store, folders, HOUR).sweep()
    retry.join()
    assert queued == [Job.STATE_QUEUED]
    assert not work.exists()
