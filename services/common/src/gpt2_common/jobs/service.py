"""The gRPC face of jobs, the same on every service. Translates messages; decides nothing."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from gpt2.jobs.v1 import jobs_service_pb2 as pb
from gpt2.jobs.v1 import jobs_service_pb2_grpc
from gpt2_common.errors import InvalidRequest
from gpt2_common.jobs.definition import service_version
from gpt2_common.jobs.manager import JobManager, Starter

_DEFAULT_PAGE = 100
_LARGEST_PAGE = 1000
_LONGEST_REASON = 1000


class JobsServicer(jobs_service_pb2_grpc.JobsServiceServicer):
    """Serves gpt2.jobs.v1.JobsService.

    Args:
        service: Short name of the service.
        jobs: Its jobs.
        starters: Its start calls, by name, to continue runs with.
    """

    def __init__(self, service: str, jobs: JobManager, starters: Mapping[str, Starter]) -> None:
        self._service = service
        self._jobs = jobs
        self._starters = starters

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.GetJobResponse:  # noqa: ARG002
        """Returns one job."""
        _require_id(request.job_id)
        return pb.GetJobResponse(job=await self._jobs.get(request.job_id))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:  # noqa: ARG002
        """Lists jobs, newest first."""
        size = page_size(request.page_size)
        before = int(request.page_token) if request.page_token.isdecimal() else None
        if request.page_token and before is None:
            raise InvalidRequest([("page_token", "must be the next_page_token of an answer before")])
        jobs, after = await self._jobs.page(request.run_id, request.states, size, before)
        return pb.ListJobsResponse(jobs=jobs, next_page_token="" if after is None else str(after))

    async def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> AsyncIterator[pb.WatchJobResponse]:  # noqa: ARG002
        """Sends a job and its changes until it has ended."""
        _require_id(request.job_id)
        async for job in self._jobs.watch(request.job_id, request.after_revision):
            yield pb.WatchJobResponse(job=job)

    async def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> pb.CancelJobResponse:  # noqa: ARG002
        """Asks a job to stop."""
        _require_id(request.job_id)
        _require_short(request.reason)
        return pb.CancelJobResponse(job=await self._jobs.cancel(request.job_id, request.reason))

    async def CancelRun(self, request: pb.CancelRunRequest, context: Any) -> pb.CancelRunResponse:  # noqa: ARG002
        """Asks the jobs of a run to stop, and keeps more of them from starting."""
        _require_id(request.run_id, "run_id")
        _require_short(request.reason)
        return pb.CancelRunResponse(jobs=await self._jobs.cancel_run(request.run_id, request.reason))

    async def ContinueRun(self, request: pb.ContinueRunRequest, context: Any) -> pb.ContinueRunResponse:  # noqa: ARG002
        """Takes a run up again where it stopped."""
        _require_id(request.run_id, "run_id")
        return pb.ContinueRunResponse(jobs=await self._jobs.continue_run(request.run_id, self._starters))

    async def DescribeService(self, request: pb.DescribeServiceRequest, context: Any) -> pb.DescribeServiceResponse:  # noqa: ARG002
        """Says which service this is."""
        return pb.DescribeServiceResponse(
            service=self._service, version=service_version(), kinds=sorted(self._jobs.kinds)
        )


def page_size(asked: int) -> int:
    """The size of a page that a list call asks for. Raises InvalidRequest when it is out of range."""
    if not 0 <= asked <= _LARGEST_PAGE:
        raise InvalidRequest([("page_size", f"must be 1 to {_LARGEST_PAGE}, or 0 for {_DEFAULT_PAGE}")])
    return asked or _DEFAULT_PAGE


def _require_id(value: str, field: str = "job_id") -> None:
    if not value:
        raise InvalidRequest([(field, "is required")])


def _require_short(reason: str) -> None:
    if len(reason) > _LONGEST_REASON:
        raise InvalidRequest([("reason", f"must have {_LONGEST_REASON} characters at most")])
