"""Trainings of a trainer service that runs beside the cluster, with the rights of its service account in it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainer_support.data import make_dataset
from trainer_support.service import Trainer

from gpt2.jobs.v1 import job_pb2, jobs_service_pb2
from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.jobs.messages import decode_message
from gpt2_trainer.trainjobs.manifest import trainjob_name
from gpt2_trainer.trainjobs.pod import LOG_PREFIX

from .pod import Pod
from .running_cluster import TRAINER_IMAGE, Cluster
from .waiting import wait_for

NAMESPACE = "gpt2"
ENDLESS = 1_000_000
"""Steps of a training that no test waits for."""
POD_LABEL = "jobset.sigs.k8s.io/jobset-name"
State = job_pb2.Job


class Trainings:
    """A trainer, started again and again on the same jobs and artifacts, and what it trains.

    Args:
        folder: Where its jobs, artifacts and logs lie.
        cluster: Where its trainings run.
    """

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self.cluster = folder, cluster
        self._trainers: list[Trainer] = []
        self._started: list[str] = []
        make_dataset(folder / "dataset")
        self.write_credentials("trainer")

    def write_credentials(self, service_account: str) -> None:
        """Writes what a pod of a service account would find mounted."""
        api = self.cluster.control_plane.service_account(NAMESPACE, service_account)
        folder = self.folder / "credentials"
        folder.mkdir(exist_ok=True)
        (folder / "ca.crt").write_bytes(api.authority.read_bytes())
        (folder / "namespace").write_text(NAMESPACE)
        (folder / "token").write_text(api.identity.token)

    def start(self, **variables: str) -> Trainer:
        """Starts the service."""
        settings = {
            "GPT2_TRAINING_BACKEND": "trainjob",
            "GPT2_TRAINJOB_IMAGE": f"{TRAINER_IMAGE}:1",
            "GPT2_TRAINJOB_RUNTIME": "TrainingRuntime/gpt2-trainer",
            "GPT2_TRAINJOB_MEMORY": "4Gi",
            "GPT2_KUBERNETES_API": self.cluster.control_plane.url,
            "GPT2_KUBERNETES_CREDENTIALS": str(self.folder / "credentials"),
        }
        self._trainers.append(Trainer(self.folder, **{**settings, **variables}))
        return self._trainers[-1]

    def close(self) -> None:
        """Stops the service."""
        for trainer in self._trainers:
            trainer.channel.close()
            trainer.process.terminate()
            trainer.process.wait(60)

    def train(self, trainer: Trainer, job_id: str, steps: int = ENDLESS, num_nodes: int = 0, **options: Any) -> State:
        """Starts a training, which saves each fifth step."""
        request = pb.TrainModelRequest(
            job=job_pb2.JobOptions(job_id=job_id, **options),
            dataset_uri=(self.folder / "dataset").as_uri(),
            model=pb.ModelConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=16),
            config=pb.TrainConfig(
                steps=steps,
                batch_size=4,
                sample_length=1,
                save_every=5,
                validate_every=1_000_000,
                seed=7,
                num_nodes=num_nodes,
            ),
        )
        self._started.append(job_id)
        return trainer.trainer.TrainModel(request).job

    def cancel(self, trainer: Trainer, job_id: str) -> None:
        """Cancels a job."""
        trainer.jobs.CancelJob(jobs_service_pb2.CancelJobRequest(job_id=job_id, reason="enough"))

    def cancel_all(self, trainer: Trainer) -> None:
        """Cancels all jobs that have not ended, and waits for their ends: a trainer has one training at a time."""
        for job_id in self._started:
            if self.job(trainer, job_id).state in (State.STATE_QUEUED, State.STATE_RUNNING):
                self.cancel(trainer, job_id)
                self.wait_for_end(trainer, job_id)

    def job(self, trainer: Trainer, job_id: str) -> State:
        """A job as it is now."""
        return trainer.jobs.GetJob(jobs_service_pb2.GetJobRequest(job_id=job_id)).job

    def wait_for_step(self, trainer: Trainer, job_id: str, step: int) -> None:
        """Waits until a job reports a step. Raises AssertionError when the job ends before."""

        def is_past() -> bool:
            job = self.job(trainer, job_id)
            assert job.state in (State.STATE_QUEUED, State.STATE_RUNNING), job
            return job.progress.phase == "training" and job.progress.done > step

        wait_for(is_past, lambda: f"step {step} of {self.job(trainer, job_id)}")

    def wait_for_phase(self, trainer: Trainer, job_id: str, phase: str) -> str:
        """Waits until a job's progress says so, and returns the phase."""

        def found() -> str:
            job = self.job(trainer, job_id)
            assert job.state in (State.STATE_QUEUED, State.STATE_RUNNING), job
            return job.progress.phase if phase in job.progress.phase else ""

        return wait_for(found, lambda: f"phase {phase} of {self.job(trainer, job_id)}")

    def wait_for_end(self, trainer: Trainer, job_id: str) -> State:
        """Waits until a job has ended, and returns it."""

        def ended() -> State | None:
            job = self.job(trainer, job_id)
            return None if job.state in (State.STATE_QUEUED, State.STATE_RUNNING) else job

        found = wait_for(ended, lambda: f"the end of {self.job(trainer, job_id)}")
        assert found is not None
        return found

    def trainjob(self, job_id: str) -> Mapping[str, Any] | None:
        """The TrainJob of a job; None where there is none."""
        path = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs/{trainjob_name(job_id)}"
        return self.cluster.control_plane.api.get(path)

    def pods(self, job_id: str) -> list[dict[str, Any]]:
        """The pods of a job that the API has, also those that terminate."""
        return self.cluster.objects(NAMESPACE, "pods", selector=f"{POD_LABEL}={trainjob_name(job_id)}")

    def seen(self, job_id: str) -> list[Pod]:
        """All pods that a node ever had for a job, the oldest first."""
        return self.cluster.training_pods(trainjob_name(job_id))


def address_of(cluster: Cluster) -> tuple[str, int]:
    """Host and port of the API."""
    url = urlsplit(cluster.control_plane.url)
    return str(url.hostname), int(url.port or 0)


def steps_of(pod: Pod) -> list[int]:
    """The steps that a pod has reported, each in turn."""
    lines = pod.log().read_text().splitlines() if pod.log().exists() else []
    texts = [line.removeprefix(LOG_PREFIX) for line in lines if line.startswith(LOG_PREFIX) and line.endswith("}")]
    found = [decode_message(json.loads(text)) for text in texts]
    return [item.done for item in found if isinstance(item, job_pb2.Progress) and item.unit == "steps"]


def index_of(pod: Pod) -> int:
    """Which node of its training a pod is: names end with the index of the Job, that of the pod, and a suffix."""
    return int(pod.name.split("-")[-2])


def weights_of(job: State) -> bytes:
    """The weights in a training's checkpoint."""
    [checkpoint] = [output for output in job.outputs if output.name == "checkpoint"]
    return (Path(urlsplit(checkpoint.uri).path) / "weights.safetensors").read_bytes()
