"""Services killed at random points of their jobs, over real processes and Apache Kafka.

Whatever was killed: every job has SUCCEEDED, its artifacts are those of a run that nobody killed, one version is
registered, the event log tells each change of state once and in order, and no temporary file is left.
GPT2_FAULTS=long kills the service of each of the ten kinds of job 20 times before the job has ended.
"""

import os
import random
import time
from collections import Counter

import pytest
from google.protobuf import json_format

from gpt2.jobs.v1 import job_pb2
from gpt2_catalogue import catalogue, default_stage_name

from .runs import Job, all_stages, check, digests, finish, request_of, start, wait_for_job
from .services import KINDS, FaultStack, KillableService

LONG = os.environ.get("GPT2_FAULTS") == "long"
ALL_KINDS = tuple(kind for kinds in KINDS.values() for kind in kinds)
KILLS = 20 if LONG else 1
MAX_KILLS_OF_A_JOB = 4
# In the short form, one that is over in a moment and one that makes a version.
KILLED_KINDS = ALL_KINDS if LONG else ("EncodeCorpus", "RegisterModel")
HEADINGS = ["run", "service", "stage", "killed after s", "state", "phase"]
UNFINISHED = (Job.STATE_QUEUED, Job.STATE_RUNNING)


def seconds(job: Job) -> float:
    """How long the last attempt of a job took."""
    return job.end_time.ToDatetime().timestamp() - job.start_time.ToDatetime().timestamp()


def kill_at_random(service: KillableService, job_id: str, within: float, dice: random.Random) -> tuple[Job, list[str]]:
    """Kills a service at a random point of a job's life. Returns the job at that moment, and a row of the table."""
    after = dice.uniform(0, within)
    time.sleep(after)
    service.kill()
    job = service.stored_job(job_id)
    service.start().wait_until_ready()
    state = Job.State.Name(job.state).removeprefix("STATE_")
    return job, [job.run_id, service.name, job.kind, f"{after:.2f}", state, job.progress.phase]


def submit(stack: FaultStack, kind: str, run_id: str, request: dict) -> str:
    """Starts one job of a kind by a call. Returns its id."""
    options = job_pb2.JobOptions(run_id=run_id, job_id=f"{run_id}/{default_stage_name(kind)}")
    message = json_format.ParseDict(request, catalogue().stages[kind].request())
    message.job.CopyFrom(options)
    stack.owner(kind).call(kind, message)
    return options.job_id


@pytest.mark.exhaustive
@pytest.mark.timeout(3600 if LONG else 900)
@pytest.mark.parametrize("kind", KILLED_KINDS)
def test_a_job_whose_service_is_killed_ends_as_one_that_nobody_killed(stack, undisturbed, kind, report):
    dice = random.Random(kind)
    service, within = stack.owner(kind), seconds(undisturbed[kind])
    table, killed, late, runs, events = [HEADINGS], 0, 0, 0, 0
    while killed < KILLS:
        run_id = f"killed-{default_stage_name(kind)}-{runs}"
        request = request_of(kind, stack, undisturbed)
        job_id = submit(stack, kind, run_id, request | ({"model_name": run_id} if kind == "RegisterModel" else {}))
        for _ in range(min(MAX_KILLS_OF_A_JOB, KILLS - killed)):
            job, row = kill_at_random(service, job_id, within, dice)
            table.append(row)
            if job.state not in UNFINISHED:
                late += 1
                # The machine is less busy than it was.
                within = seconds(job)
                break
            killed += 1
        jobs = finish(stack, run_id, kind)
        events += check(stack, run_id, jobs)
        assert digests(jobs) == digests({kind: undisturbed[kind]})
        runs += 1
    report(
        f"{killed} kills before the end, {late} just after it: {runs} of {runs} jobs SUCCEEDED, files equal, "
        f"{events} events in order",
        table,
    )


def test_a_planned_run_whose_services_are_killed_ends_as_one_that_nobody_killed(stack, undisturbed, report):
    run_id = "killed-run"
    dice = random.Random(0)
    table = [HEADINGS]
    start(stack, run_id, all_stages(stack.folder.artifacts.as_uri(), run_id))
    for kind in ("ExportCorpus", "EncodeCorpus", "TrainModel", "RegisterModel"):
        job = wait_for_job(stack, run_id, kind)
        table.append(kill_at_random(stack.owner(kind), job.job_id, seconds(undisturbed[kind]), dice)[1])
    jobs = finish(stack, run_id, "RegisterModel")
    assert set(jobs) == set(ALL_KINDS)
    events = check(stack, run_id, jobs)
    expected = digests(undisturbed)
    assert {kind for kind, _ in expected} == set(jobs) - {"RegisterModel"}
    assert digests(jobs) == expected
    kills = Counter(row[1] for row in table[1:])
    report(
        f"{kills.total()} kills ({', '.join(kills)}): {len(jobs)} jobs SUCCEEDED, {len(expected)} files equal, "
        f"1 version, {events} events in order",
        table,
    )
