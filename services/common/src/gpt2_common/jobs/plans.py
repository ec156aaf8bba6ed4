"""The details of a job's plan, stored apart from the job: requests of remaining stages, artifacts of earlier ones.

The stages of a run's plan are stored once for the run, with its first job; a later job's are the end of them. A job
whose plan has other stages keeps its own. So lists read jobs without their plans, and a job read whole has all of it.
"""

from collections.abc import Sequence

from gpt2.jobs.v1 import job_pb2


def strip_plan(job: job_pb2.Job) -> job_pb2.Job:
    """Returns a copy of a job as lists have it: its plan has names and start calls of stages, and the cause."""
    basic = job_pb2.Job()
    basic.CopyFrom(job)
    if basic.HasField("plan"):
        basic.plan.ClearField("artifacts")
        for stage in basic.plan.stages:
            stage.ClearField("request")
    return basic


def plan_details(job: job_pb2.Job, run_stages: Sequence[job_pb2.PlannedStage] = ()) -> bytes | None:
    """Returns what `strip_plan` removes and the run does not have: a serialized RunPlan; None for a job without a plan.

    Args:
        job: The whole job.
        run_stages: Stages that are stored with its run.
    """
    if not job.HasField("plan"):
        return None
    details = job_pb2.RunPlan(artifacts=job.plan.artifacts)
    if list(job.plan.stages) != list(run_stages[len(run_stages) - len(job.plan.stages) :]):
        details.stages.extend(job.plan.stages)
    return details.SerializeToString()


def restore_plan(job: job_pb2.Job, details: bytes | None, run_plan: bytes | None) -> job_pb2.Job:
    """Restores the plan that `strip_plan` removed from a job, in place, and returns the job.

    Args:
        job: The job. One that was stored before plans were kept apart has all of its plan, and stays as it is.
        details: What `plan_details` returned; None for a job without a plan, or of an earlier version.
        run_plan: The plan that is stored with its run, serialized.
    """
    if details is None:
        return job
    kept = job_pb2.RunPlan.FromString(details)
    if job.plan.stages:
        count = len(job.plan.stages)
        stages = kept.stages or job_pb2.RunPlan.FromString(run_plan or b"").stages[-count:]
        job.plan.ClearField("stages")
        job.plan.stages.extend(stages)
    job.plan.artifacts.extend(kept.artifacts)
    return job
