"""A training on the node that something happens to, and an uninterrupted one, with whose weights it has to end."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from google.rpc import code_pb2
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from gpt2.jobs.v1.job_pb2 import Job
from gpt2_orchestration.client.service_client import connect
from tests.containers.runs import start_training

from .services import Services

STEPS = 1500
SAVE_EVERY = 100
KIND = "TrainModel"
_STARTED = (Job.STATE_QUEUED, Job.STATE_RUNNING)
_LOGS = "events.out.tfevents.*"


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run.

    Attributes:
        dataset_uri: What its training reads.
        weights: What its training ends with.
    """

    dataset_uri: str
    weights: bytes


@dataclass(frozen=True)
class Attempt:
    """One attempt of a training.

    Attributes:
        pod: The pod that it ran in.
        first_step: The step that it began with.
    """

    pod: str
    first_step: int


def run_uninterrupted(services: Services, run_id: str) -> Reference:
    """Runs a plan whose training nothing disturbs."""
    services.start_run(run_id, steps=STEPS, save_every=SAVE_EVERY)
    jobs = services.finish(run_id)
    [dataset_uri] = [output.uri for output in jobs["EncodeCorpus"].outputs if output.name == "dataset"]
    assert len(attempts(services, jobs)) == 1
    return Reference(dataset_uri, weights(services, jobs))


def weights(services: Services, jobs: Mapping[str, Job]) -> bytes:
    """The weights in a run's checkpoint."""
    return (services.output_folder(jobs, KIND, "checkpoint") / "weights.safetensors").read_bytes()


def attempts(services: Services, jobs: Mapping[str, Job]) -> list[Attempt]:
    """The attempts of a run's training that have come to its steps, by the logs that each has written."""
    return [_attempt(path) for path in sorted(services.output_folder(jobs, KIND, "logs").glob(_LOGS))]


def _attempt(log: Path) -> Attempt:
    # Names are events.out.tfevents.TIME.HOST.PROCESS, and a pod's host is called as the pod is.
    pod = log.name.removeprefix("events.out.tfevents.").split(".")[1]
    starts = [event.step for event in EventFileLoader(str(log)).Load() if event.HasField("session_log")]
    return Attempt(pod, starts[0])


class Training:
    """A training that begins a run.

    Attributes:
        run_id: The run's.
        job_id: The training's own, once it has been started.

    Args:
        services: Where it runs.
        run_id: The run's.
        reference: What it is compared with.
        tell: Prints a line.
    """

    def __init__(self, services: Services, run_id: str, reference: Reference, tell: Callable[[str], None]) -> None:
        self._services, self.run_id, self._reference, self._tell = services, run_id, reference, tell
        self._began = time.monotonic()
        self.job_id = ""

    def start(self) -> None:
        """Starts the run."""
        self.job_id = start_training(
            self.run_id, self._reference.dataset_uri, STEPS, self._services.client, save_every=SAVE_EVERY
        )

    def wait_for_step(self, step: int) -> Job:
        """Waits until the training is past a step. Raises AssertionError when it ends before."""

        def is_past(job: Job) -> bool:
            assert job.state in _STARTED, job
            return job.progress.unit == "steps" and job.progress.done > step

        return self._wait(is_past, f"step {step}")

    def wait_for_phase(self, text: str) -> Job:
        """Waits until the training says what it waits for."""
        return self._wait(lambda job: text in job.progress.phase, f"phase {text}")

    def wait_for_state(self, state: int) -> Job:
        """Waits until the training's job has a state."""
        return self._wait(lambda job: job.state == state, f"state {Job.State.Name(state)}")

    def require_out_of_resources(self, *advice: str) -> None:
        """Waits until the training has failed for lack of something, and looks for some advice in its error."""
        error = self.wait_for_state(Job.STATE_FAILED).error
        assert error.code == code_pb2.RESOURCE_EXHAUSTED, error
        assert all(text in error.message for text in advice), error.message
        self._tell(f"{self.run_id}: {error.message.splitlines()[0][:200]}")

    def resume(self) -> None:
        """Continues the run after its training has failed or was cancelled."""
        with connect("trainer", self._services.client) as trainer:
            trainer.continue_run(self.run_id)

    def require_same_end(self, is_resumed: bool = True) -> list[Attempt]:
        """Waits for the run's version, and holds the weights against those of the uninterrupted run.

        Args:
            is_resumed: Whether a later attempt has to have resumed from a checkpoint.
        """
        jobs = self._services.finish(self.run_id)
        made = attempts(self._services, jobs)
        if is_resumed:
            assert len(made) > 1, made
            assert all(attempt.first_step > SAVE_EVERY for attempt in made[1:]), made
        assert weights(self._services, jobs) == self._reference.weights, made
        steps = ", ".join(str(attempt.first_step) for attempt in made)
        self._tell(f"{self.run_id}: labelled after {time.monotonic() - self._began:.0f} s; attempts from step {steps}")
        return made

    def _wait(self, condition: Callable[[Job], bool], what: str) -> Job:
        return self._services.wait_for_job(self.run_id, KIND, condition, what)
