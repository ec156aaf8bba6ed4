"""Planned runs over the real services and Apache Kafka, while each service is killed at random points.

Whatever was killed: every stage has SUCCEEDED, its artifacts are those of a run that nobody killed, one version is
registered, the event log tells each change of state once and in order, and no temporary file is left.
GPT2_FAULTS=long kills the service of each of the ten kinds of job 20 times.
"""

import os
import random
import time
from collections import Counter

import pytest

from .runs import FIRST, Job, all_stages, check, digests, finish, start, wait_for_job
from .services import KINDS, FaultStack

LONG = os.environ.get("GPT2_FAULTS") == "long"
RUNS, KILLS_OF_A_STAGE = (10, 2) if LONG else (1, 1)
# A short run's kills are at one stage of each service, of the long form's at all.
SHORT_STAGES = ("ExportCorpus", "EncodeCorpus", "TrainModel", "RegisterModel")


def run_all(stack: FaultStack, run_id: str) -> None:
    start(stack, run_id, all_stages(stack.folder.artifacts.as_uri(), run_id))


def check_all(stack: FaultStack, run_id: str, jobs: dict[str, Job]) -> int:
    """Holds the jobs of a run of all kinds against what was promised. Returns the number of its events."""
    assert {kind for kinds in KINDS.values() for kind in kinds} == set(jobs)
    return check(stack, run_id, jobs)


def seconds(job: Job) -> float:
    return job.end_time.ToDatetime().timestamp() - job.create_time.ToDatetime().timestamp()


def kill_at_random(stack: FaultStack, run_id: str, kind: str, within: float, dice: random.Random) -> list[str]:
    """Kills the service of a kind of job at a random point of the job's life. Returns what the table says of it."""
    service = stack.owner(kind)
    wait_for_job(stack, run_id, kind)
    after = dice.uniform(0, within)
    time.sleep(after)
    [job] = [job for job in service.jobs(run_id) if job.kind == kind]
    service.kill()
    service.start().wait_until_ready()
    return [run_id, service.name, kind, f"{after:.2f}", Job.State.Name(job.state)[6:], job.progress.phase]


@pytest.fixture(scope="module")
def undisturbed(stack) -> dict[str, Job]:
    """The jobs of a run that nobody killed."""
    run_all(stack, "undisturbed")
    jobs = finish(stack, "undisturbed", "RegisterModel")
    check_all(stack, "undisturbed", jobs)
    return jobs


@pytest.mark.parametrize("number", range(RUNS))
def test_killed_services_bring_a_run_to_the_end_of_one_that_nobody_killed(stack, undisturbed, number, report):
    run_id = f"killed-{number}"
    dice = random.Random(number)
    table = [["run", "service", "stage", "killed after s", "state", "phase"]]
    run_all(stack, run_id)
    for kind in (FIRST, *all_stages("", "")) if LONG else SHORT_STAGES:
        for _ in range(KILLS_OF_A_STAGE):
            table.append(kill_at_random(stack, run_id, kind, seconds(undisturbed[kind]), dice))
    jobs = finish(stack, run_id, "RegisterModel")
    events = check_all(stack, run_id, jobs)
    expected = digests(undisturbed)
    assert {kind for kind, _ in expected} == set(jobs) - {"RegisterModel"}
    assert digests(jobs) == expected
    kills = Counter(row[1] for row in table[1:])
    report(
        f"{kills.total()} kills ({', '.join(f'{name} {count}' for name, count in kills.items())}): {len(jobs)} jobs "
        f"SUCCEEDED, {len(expected)} files equal, 1 version, {events} events in order",
        table,
    )
