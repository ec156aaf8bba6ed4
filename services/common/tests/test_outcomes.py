"""What becomes of a job by each outcome of its attempt, and how outcomes and reports travel."""

import pytest
from google.rpc import code_pb2, status_pb2

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_common.jobs.messages import JobWarning, decode_message, encode_message
from gpt2_common.jobs.outcome import Cancelled, Failed, Succeeded, Suspended, apply_outcome

Job = job_pb2.Job
MADE = artifact_pb2.Artifact(name="corpus", uri="file:///corpus", counts={"documents": 1})
ERROR = status_pb2.Status(code=code_pb2.FAILED_PRECONDITION, message="the collection is empty")
REQUESTED = status_pb2.Status(code=code_pb2.CANCELLED, message="cancelled by ann")


@pytest.mark.parametrize(
    ("outcome", "state", "message"),
    [
        (Succeeded([MADE]), Job.STATE_SUCCEEDED, ""),
        (Failed(ERROR), Job.STATE_FAILED, ERROR.message),
        (Cancelled("cancelled by ann"), Job.STATE_CANCELLED, "cancelled by ann"),
        (Suspended(), Job.STATE_QUEUED, ""),
    ],
)
def test_an_outcome_is_the_state_of_its_job(outcome, state, message):
    job = Job(state=Job.STATE_RUNNING)
    apply_outcome(job, outcome)
    assert (job.state, job.error.message) == (state, message)
    assert job.HasField("end_time") == (state != Job.STATE_QUEUED)
    assert list(job.outputs) == ([MADE] if state == Job.STATE_SUCCEEDED else [])


@pytest.mark.parametrize("outcome", [Failed(ERROR), Cancelled(), Suspended()])
def test_a_requested_cancellation_is_why_a_job_ends_however_its_attempt_did(outcome):
    job = Job(state=Job.STATE_RUNNING, cancel_requested=True, error=REQUESTED)
    apply_outcome(job, outcome)
    assert (job.state, job.error) == (Job.STATE_CANCELLED, REQUESTED)


def test_a_job_that_succeeds_before_its_cancellation_has_succeeded():
    job = Job(state=Job.STATE_RUNNING, cancel_requested=True, error=REQUESTED)
    apply_outcome(job, Succeeded([MADE]))
    assert job.state == Job.STATE_SUCCEEDED
    assert not job.HasField("error")


@pytest.mark.parametrize(
    "message",
    [
        job_pb2.Progress(phase="reading", done=1, metrics={"loss": 2.5}),
        JobWarning("the loss rose"),
        Succeeded([MADE]),
        Failed(ERROR),
        Cancelled(),
        Suspended(),
    ],
)
def test_messages_arrive_as_they_were_sent(message):
    assert decode_message(encode_message(message)) == message


def test_messages_of_another_type_are_refused():
    with pytest.raises(KeyError):
        decode_message({"news": 1})
