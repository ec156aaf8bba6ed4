"""The operator that starts a job and waits for it without a worker's slot, and the trigger that waits meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
from airflow.models import BaseOperator
from airflow.triggers.base import BaseTrigger, TriggerEvent

from gpt2.jobs.v1 import job_pb2
from gpt2_orchestration.airflow.parameters import specification_of_run
from gpt2_orchestration.client import ClientSettings, JobFailed, connect, watch_to_end
from gpt2_orchestration.job_states import FINAL_STATES
from gpt2_orchestration.pipelines.graph import Stage, pipeline_stages
from gpt2_orchestration.pipelines.requests import Input, build_request, request_json, run_name

_LOST_SECONDS = 5.0


class StartCallOperator(BaseOperator):  # type: ignore[misc]
    """Makes the start call of the stage that the task is named as.

    Args:
        specification: The specification's file.
        kwargs: As for every operator.

    Returns:
        To tasks behind it: URI and digest of each output, by name.
    """

    def __init__(self, *, specification: Path, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.specification = specification
        self._job_id = ""
        self._service = ""

    def execute(self, context: Mapping[str, Any]) -> Any:
        """Starts the job; a retry finds the one that is there. Raises ServiceError, JobFailed."""
        stage = self._stage(context)
        inputs = {
            name: Input(**context["ti"].xcom_pull(task_ids=source.stage)[source.output])
            for name, source in stage.inputs.items()
        }
        run_id = run_name(self.dag_id, context["run_id"])
        request = build_request(stage.call, request_json(stage.request), inputs, run_id)
        with connect(stage.call.service, ClientSettings.from_environment()) as client:
            job = client.start(stage.call, request)
        self._job_id, self._service = job.job_id, stage.call.service
        if job.state in FINAL_STATES:
            return self._outputs(job)
        self.log.info("job %s is at work; the task waits without a slot", job.job_id)
        self.defer(trigger=JobTrigger(stage.call.service, job.job_id), method_name="finish")

    def finish(self, context: Mapping[str, Any], event: Mapping[str, str]) -> Any:  # noqa: ARG002 - Airflow gives it
        """Goes on when the job has ended. Raises JobFailed."""
        with connect(event["service"], ClientSettings.from_environment()) as client:
            return self._outputs(client.get(event["job_id"]))

    def on_kill(self) -> None:
        """Cancels the job when the task is ended while it starts it."""
        if self._job_id:
            with connect(self._service, ClientSettings.from_environment()) as client:
                client.cancel(self._job_id, "the Airflow task was ended")

    def _stage(self, context: Mapping[str, Any]) -> Stage:
        specification = specification_of_run(self.specification, context["params"])
        return next(stage for stage in pipeline_stages(specification) if stage.name == self.task_id)

    def _outputs(self, job: job_pb2.Job) -> dict[str, dict[str, str]]:
        if job.state != job_pb2.Job.STATE_SUCCEEDED:
            raise JobFailed(job)
        return {output.name: {"uri": output.uri, "digest": output.digest} for output in job.outputs}


class JobTrigger(BaseTrigger):  # type: ignore[misc]
    """Waits for the end of a job, for as long as it takes; a service that restarts meanwhile is waited for.

    Args:
        service: Its short name.
        job_id: The job.
    """

    def __init__(self, service: str, job_id: str) -> None:
        super().__init__()
        self.service = service
        self.job_id = job_id

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """What Airflow makes the trigger of again, elsewhere."""
        return "gpt2_orchestration.airflow.operator.JobTrigger", {"service": self.service, "job_id": self.job_id}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Yields one event when the job has ended."""
        while True:
            try:
                await watch_to_end(self.service, ClientSettings.from_environment(), self.job_id)
            except grpc.aio.AioRpcError as error:
                if error.code() == grpc.StatusCode.UNAVAILABLE:
                    await asyncio.sleep(_LOST_SECONDS)
                    continue
            # Whatever the answer was, the task asks for the job again and says what is wrong.
            yield TriggerEvent({"service": self.service, "job_id": self.job_id})
            return
