"""States of jobs: which of them are final, and their names for people."""

from gpt2.jobs.v1 import job_pb2

FINAL_STATES = (job_pb2.Job.STATE_SUCCEEDED, job_pb2.Job.STATE_FAILED, job_pb2.Job.STATE_CANCELLED)
UNFINISHED_STATES = (job_pb2.Job.STATE_QUEUED, job_pb2.Job.STATE_RUNNING)


def state_name(state: job_pb2.Job.State.ValueType) -> str:
    """A state as a word, such as `running`."""
    return job_pb2.Job.State.Name(state).removeprefix("STATE_").lower()
