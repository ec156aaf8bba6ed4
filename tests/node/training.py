"""A training on the node that something happens to, and an uninterrupted one, with whose weights it has to end."""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from google.rpc import code_pb2
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from gpt2.jobs.v1.job_pb2 import Job
from gpt2_orchestration.client.service_client import connect
from gpt2_trainer.trainjobs.manifest import trainjob_name
from tests.containers.runs import start_training

from .services import Services

CONFIG = {"steps": 1000, "batch_size": 32, "save_every": 100}
"""Long enough that there is something left to train when the kubelet has found out what a pod has written."""
SAVE_EVERY = CONFIG["save_every"]
KIND = "TrainModel"
_STARTED = (Job.STATE_QUEUED, Job.STATE_RUNNING)
_LOGS = "events.out.tfevents.*"
_USE_UP_MEMORY = """
import os, pathlib, sys, time

def is_there(module):
    commands = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            commands.append(path.read_bytes().split(b"\\0"))
        except OSError:
            pass
    return any(module.encode() in command for command in commands if "-c".encode() not in command)

holders = []
while is_there(sys.argv[1]) and len(holders) < 100:
    holders.append(os.fork())
    if not holders[-1]:
        block = b"x" * (40 << 20)
        time.sleep(60)
        os._exit(0)
    time.sleep(0.2)
for holder in holders:
    os.kill(holder, 9)
"""


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
        host: That of the pod that it ran in: the pod's name, without the random suffix of a TrainJob's.
        first_step: The step that it began with.
    """

    host: str
    first_step: int


def run_uninterrupted(services: Services, run_id: str) -> Reference:
    """Runs a plan whose training nothing disturbs."""
    services.start_run(run_id, **CONFIG)
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


def started_pods(services: Services, job_id: str) -> dict[str, int]:
    """The pods of a job's TrainJob that the kubelet has started, with their nodes; they are gone with the TrainJob."""
    prefix = f"{trainjob_name(job_id)}-node-0-"
    events = [item for item in services.objects("events") if item["reason"] == "Started"]
    pods = {item["involvedObject"]["name"] for item in events if item["involvedObject"]["kind"] == "Pod"}
    return {pod: int(pod.removeprefix(prefix).split("-")[0]) for pod in pods if pod.startswith(prefix)}


def use_up_memory(services: Services, pod: str, container: str, module: str) -> None:
    """Has many small processes hold a container's memory, until the kernel has killed its largest one, the training.

    Args:
        services: Where the pod is.
        pod: Its name.
        container: That of the container.
        module: What the training's process runs.
    """
    command = ["exec", pod, f"--container={container}", "--", "python", "-c", _USE_UP_MEMORY, module]
    # Where the training is the container's main process, these end with it.
    with contextlib.suppress(AssertionError):
        services.kubectl(*command)


def _attempt(log: Path) -> Attempt:
    # Names are events.out.tfevents.TIME.HOST.PROCESS.
    host = log.name.removeprefix("events.out.tfevents.").split(".")[1]
    starts = [event.step for event in EventFileLoader(str(log)).Load() if event.HasField("session_log")]
    return Attempt(host, starts[0])


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
        self.job_id = start_training(self.run_id, self._reference.dataset_uri, client=self._services.client, **CONFIG)

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
