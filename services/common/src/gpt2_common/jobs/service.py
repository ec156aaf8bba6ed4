"""The gRPC interface to the jobs of a service, the same for all: translates messages, and has no logic."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from gpt2.jobs.v1 import jobs_service_pb2 as pb
from gpt2.jobs.v1 import jobs_service_pb2_grpc
from gpt2_common.errors import InvalidRequest
from gpt2_common.jobs.corrections import read_corrections
from gpt2_common.jobs.definition import service_version
from gpt2_common.jobs.event_monitor import EventMonitor
from gpt2_common.jobs.manager import JobManager
from gpt2_common.jobs.reconciler import Reconciler
from gpt2_common.jobs.run_rows import RunPlace

_DEFAULT_PAGE = 100


class JobsServicer(jobs_service_pb2_grpc.JobsServiceServicer):
    """Serves gpt2.jobs.v1.JobsService.

    Args:
        service: Short name of the service.
        jobs: Its jobs.
        reconciler: Publishes the events of a continued run again.
        events: State of its events.
    """

    def __init__(
        self,
        service: str,
        jobs: JobManager,
        reconciler: Reconciler,
        events: EventMonitor,
    ) -> None:
        self._service = service
        self._jobs = jobs
        self._reconciler = reconciler
        self._events = events

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.GetJobResponse:  # noqa: ARG002
        """Returns one job."""
        return pb.GetJobResponse(job=await self._jobs.get(request.job_id))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:  # noqa: ARG002
        """Lists jobs, newest first."""
        size = page_size(request.page_size)
        before = int(request.page_token) if request.page_token.isdecimal() else None
        if request.page_token and before is None:
            raise InvalidRequest([("page_token", "must be the next_page_token of a previous page")])
        whole = request.view == pb.JOB_VIEW_FULL
        jobs, after = await self._jobs.list_jobs(request.run_id, request.states, size, before, whole)
        return pb.ListJobsResponse(jobs=jobs, next_page_token="" if after is None else str(after))

    async def ListRuns(self, request: pb.ListRunsRequest, context: Any) -> pb.ListRunsResponse:  # noqa: ARG002
        """Lists runs with their jobs here, newest first."""
        size = request.page_size or len(request.run_ids) or _DEFAULT_PAGE
        place = RunPlace.parse(request.page_token)
        if request.page_token and place is None:
            raise InvalidRequest([("page_token", "must be the next_page_token of a previous page")])
        runs, after = await self._jobs.list_runs(request.run_ids, size, place)
        return pb.ListRunsResponse(runs=runs, next_page_token="" if after is None else str(after))

    async def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> AsyncIterator[pb.WatchJobResponse]:  # noqa: ARG002
        """Sends a job and its changes until it has ended."""
        async for job in self._jobs.watch(request.job_id, request.after_revision):
            yield pb.WatchJobResponse(job=job)

    async def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> pb.CancelJobResponse:  # noqa: ARG002
        """Cancels a job."""
        return pb.CancelJobResponse(job=await self._jobs.cancel(request.job_id, request.reason))

    async def CancelRun(self, request: pb.CancelRunRequest, context: Any) -> pb.CancelRunResponse:  # noqa: ARG002
        """Cancels the jobs of a run, and prevents further ones."""
        return pb.CancelRunResponse(jobs=await self._jobs.cancel_run(request.run_id, request.reason))

    async def ContinueRun(self, request: pb.ContinueRunRequest, context: Any) -> pb.ContinueRunResponse:  # noqa: ARG002
        """Resumes a run."""
        if request.corrections:
            corrections = read_corrections(request.corrections)
            waiting = await asyncio.to_thread(self._reconciler.waiting_jobs, request.run_id)
            await self._jobs.correct_run(request.run_id, corrections, waiting, request.validate_only)
        if request.validate_only:
            return pb.ContinueRunResponse()
        jobs = await self._jobs.continue_run(request.run_id)
        published = await asyncio.to_thread(self._reconciler.publish_run, request.run_id)
        return pb.ContinueRunResponse(jobs=jobs, published=published)

    async def ValidateStage(self, request: pb.ValidateStageRequest, context: Any) -> pb.ValidateStageResponse:  # noqa: ARG002
        """Validates a stage; starts nothing."""
        found = self._jobs.checks.check_stage(request)
        answer = pb.ValidateStageResponse()
        for field, description in found:
            answer.violations.add(field=field, description=description)
        return answer

    async def DescribeService(self, request: pb.DescribeServiceRequest, context: Any) -> pb.DescribeServiceResponse:  # noqa: ARG002
        """Describes the service."""
        return pb.DescribeServiceResponse(
            service=self._service,
            version=service_version(),
            kinds=sorted(self._jobs.kinds),
            events=await asyncio.to_thread(self._events.describe),
        )


def page_size(requested: int) -> int:
    """The page size of a list call."""
    return requested or _DEFAULT_PAGE
