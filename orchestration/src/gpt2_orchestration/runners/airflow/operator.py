"""A deferrable operator that starts a job, and the trigger that waits for it without a worker slot."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
from airflow.models import BaseOperator
from airflow.triggers.base import BaseTrigger, TriggerEvent

from gpt2.jobs.v1 import job_pb2
from gpt2_orchestration.client.jobs import FINAL_STATES
from gpt2_orchestration.client.service_client import ClientSettings, JobFailed, connect, watch_to_end
from gpt2_orchestration.pipelines.graph import PipelineStage
from gpt2_orchestration.pipelines.requests import Input, build_request, request_json, run_name
from gpt2_orchestration.runners.airflow.parameters import specification_of_run

_LOST_SECONDS = 5.0


class StartCallOperator(BaseOperator):  # type: ignore[misc]
    """Makes the start call of the stage with the task's id.

    Args:
        specification: File of the specification.
        kwargs: Arguments of BaseOperator.

    Returns:
        URI and digest of each output by name, for downstream tasks.
    """

    def __init__(self, *, specification: Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.specification = specification
        self._job_id = ""
        self._service = ""

    def execute(self, context: Mapping[str, Any]) -> Any:
        """Starts the job, or finds it in a retry. Raises ServiceError, JobFailed."""
        stage = self._stage(context)
        inputs = {
            name: Input(**context["ti"].xcom_pull(task_ids=source.stage)[source.output])
            for name, source in stage.inputs.items()
        }
        run_id = run_name(self.dag_id, context["run_id"])
        request = build_request(stage.declaration, request_json(stage.request), inputs, run_id)
        with connect(stage.declaration.service, ClientSettings.from_environment()) as client:
            job = client.start(stage.name, request)
        self._job_id, self._service = job.job_id, stage.declaration.service
        if job.state in FINAL_STATES:
            return self._outputs(job)
        self.log.info("job %s is running; the task is deferred", job.job_id)
        self.defer(trigger=JobTrigger(stage.declaration.service, job.job_id), method_name="finish")

    def finish(self, context: Mapping[str, Any], event: Mapping[str, str]) -> Any:  # noqa: ARG002 - Airflow gives it
        """Resumes when the job has ended. Raises JobFailed."""
        with connect(event["service"], ClientSettings.from_environment()) as client:
            return self._outputs(client.get(event["job_id"]))

    def on_kill(self) -> None:
        """Cancels the job when the task is killed before it is deferred."""
        if self._job_id:
            with connect(self._service, ClientSettings.from_environment()) as client:
                client.cancel(self._job_id, "the Airflow task was ended")

    def _stage(self, context: Mapping[str, Any]) -> PipelineStage:
        specification = specification_of_run(self.specification, context["params"])
        return next(stage for stage in specification.stages() if stage.name == self.task_id)

    def _outputs(self, job: job_pb2.Job) -> dict[str, dict[str, str]]:
        if job.state != job_pb2.Job.STATE_SUCCEEDED:
            raise JobFailed(job)
        return {output.name: {"uri": output.uri, "digest": output.digest} for output in job.outputs}


class JobTrigger(BaseTrigger):  # type: ignore[misc]
    """Waits for the end of a job without a timeout, across restarts of the service.

    Args:
        service: Its short name.
        job_id: The job.
    """

    def __init__(self, service: str, job_id: str) -> None:
        super().__init__()
        self.service = service
        self.job_id = job_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Class path and arguments, from which Airflow recreates the trigger."""
        return "gpt2_orchestration.runners.airflow.operator.JobTrigger", {
            "service": self.service,
            "job_id": self.job_id,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yields an event when the job has ended."""
        while True:
            try:
                await watch_to_end(self.service, ClientSettings.from_environment(), self.job_id)
            except grpc.aio.AioRpcError as error:
                if error.code() == grpc.StatusCode.UNAVAILABLE:
                    await asyncio.sleep(_LOST_SECONDS)
                    continue
            # The task fetches the job again and reports errors.
            yield TriggerEvent({"service": self.service, "job_id": self.job_id})
            return
