"""Runs trainings as TrainJobs where the settings choose them, and every other job as a child process.

What talks to the cluster is imported where they do: its HTTP client takes a tenth of a second, of which trainings as
processes need nothing.
"""

import asyncio
import logging
from typing import TYPE_CHECKING

from gpt2_common.errors import NotFound, PipelineError
from gpt2_common.jobs.attempt import Attempt, Launcher, ReportSink
from gpt2_common.jobs.child_process_attempt import child_processes
from gpt2_common.jobs.definition import JobKind
from gpt2_common.jobs.manager import JobManager
from gpt2_common.jobs.rows import StoredJob
from gpt2_common.jobs.store import FINAL
from gpt2_trainer.settings import TrainerSettings
from gpt2_trainer.trainjobs.manifest import JOB_ID

if TYPE_CHECKING:
    from gpt2_trainer.trainjobs.kubernetes import Kubernetes

_log = logging.getLogger(__name__)
_SWEEP_SECONDS = 30.0


def trainer_launcher(settings: TrainerSettings) -> Launcher:
    """Where the trainer's jobs run. Raises SettingsError when the cluster is not known."""
    as_process = child_processes(settings)
    if settings.training_backend == "process":
        return as_process
    from gpt2_trainer.trainjobs.attempt import TrainJobAttempt
    from gpt2_trainer.trainjobs.kubernetes import ClusterAddress

    address = ClusterAddress.of(settings)

    def launch(kind: JobKind, stored: StoredJob, on_report: ReportSink) -> Attempt:
        if kind.name != "TrainModel":
            return as_process(kind, stored, on_report)
        return TrainJobAttempt(settings, address, kind, stored, on_report)

    return launch


async def sweep_trainjobs(settings: TrainerSettings, jobs: JobManager) -> None:
    """Deletes the TrainJobs of jobs that have ended, now and from time to time, until it is cancelled.

    That is how they go after success and failure, and when a job was cancelled while nobody followed its TrainJob.
    """
    from gpt2_trainer.trainjobs.kubernetes import ClusterAddress, connect_kubernetes

    address = ClusterAddress.of(settings)
    while True:
        try:
            async with connect_kubernetes(address) as kubernetes:
                await _sweep(kubernetes, jobs)
        except PipelineError as error:
            _log.warning("TrainJobs of ended jobs are not deleted now: %s", error)
        except Exception:  # noqa: BLE001 - tidying up must not end with one answer that nobody foresaw
            _log.exception("TrainJobs of ended jobs are not deleted now")
        await asyncio.sleep(_SWEEP_SECONDS)


async def _sweep(kubernetes: "Kubernetes", jobs: JobManager) -> None:
    for trainjob in await kubernetes.own_trainjobs():
        metadata = trainjob["metadata"]
        try:
            job = await jobs.get(metadata.get("annotations", {}).get(JOB_ID, ""))
        except NotFound:
            continue  # another trainer's
        if job.state in FINAL:
            await kubernetes.delete(metadata["name"], metadata["uid"])
