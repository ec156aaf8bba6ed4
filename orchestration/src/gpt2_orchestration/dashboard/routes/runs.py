"""Runs: listed, shown with lineage and the metrics of their trainings, cancelled and resumed."""

from collections.abc import Callable, Iterable

import grpc
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.jobs.v1 import job_pb2, jobs_service_pb2
from gpt2_orchestration.client.run_pagination import find_runs, newest_runs
from gpt2_orchestration.client.runs import Run, group_by_run
from gpt2_orchestration.client.service_client import NO_ANSWER, NotFoundError, ServiceClient, ServiceError
from gpt2_orchestration.client.services import Answers, Services
from gpt2_orchestration.dashboard.charts import TensorBoard
from gpt2_orchestration.dashboard.lineage import Finder, lineage
from gpt2_orchestration.dashboard.routes.bodies import Body, read_body
from gpt2_orchestration.dashboard.serialization import Json, describe_job_whole, describe_run, describe_troubles

_DEFAULT_RUNS = 50
_MAX_RUNS = 500
_JOBS_SEARCHED = 200
_TRAINING = "TrainModel"


class CancelBody(Body):
    """Why a run is stopped."""

    reason: str = ""


class ContinueBody(Body):
    """Nothing."""


class RunRoutes:
    """The calls that are about runs.

    Args:
        services: Clients of the services.
        tensorboard: Client of TensorBoard, for metrics and samples.
    """

    def __init__(self, services: Services, tensorboard: TensorBoard) -> None:
        self._services = services
        self._tensorboard = tensorboard

    def routes(self) -> list[Route]:
        """The paths, and what answers them."""
        return [
            Route("/runs", self.show_all),
            Route("/runs/{run_id}", self.show),
            Route("/runs/{run_id}/training", self.training),
            Route("/runs/{run_id}/cancel", self.cancel, methods=["POST"]),
            Route("/runs/{run_id}/continue", self.continue_, methods=["POST"]),
        ]

    def show_all(self, request: Request) -> JSONResponse:
        """The newest runs, those after a place in the list, or those of some ids."""
        ids = request.query_params.getlist("id")
        if len(ids) > _MAX_RUNS:
            raise HTTPException(400, f"id: {_MAX_RUNS} at most")
        text = request.query_params.get("limit", str(_DEFAULT_RUNS))
        if not text.isdecimal() or not 1 <= int(text) <= _MAX_RUNS:
            raise HTTPException(400, f"limit: must be 1 to {_MAX_RUNS}")
        after = request.query_params.get("after", "")
        found = find_runs(self._services, ids) if ids else newest_runs(self._services, int(text), after)
        runs = [describe_run(run) for run in found.runs]
        return JSONResponse({"runs": runs, "next": found.next_token, "troubles": describe_troubles(found.errors)})

    def show(self, request: Request) -> JSONResponse:
        """One run."""
        run, answers = self._run(request.path_params["run_id"])
        described = {**describe_run(run), "jobs": [describe_job_whole(job) for job in run.jobs]}
        graph = lineage(run.jobs, _finder(self._services))
        return JSONResponse({"run": described, "lineage": graph, "troubles": describe_troubles(answers.errors)})

    def training(self, request: Request) -> JSONResponse:
        """Metrics and samples of the trainings of a run."""
        run, _ = self._run(request.path_params["run_id"])
        trainings: list[Json] = []
        for job in run.jobs:
            if job.kind == _TRAINING:
                try:
                    trainings.append({"job_id": job.job_id, "message": "", **self._tensorboard.training(job.job_id)})
                except ServiceError as error:
                    trainings.append({"job_id": job.job_id, "message": str(error), "charts": [], "samples": []})
        return JSONResponse({"trainings": trainings})

    async def cancel(self, request: Request) -> JSONResponse:
        """Cancels a run."""
        body = await read_body(request, CancelBody)
        run_id = request.path_params["run_id"]
        return await self._ask_all(lambda client: client.cancel_run(run_id, body.reason))

    async def continue_(self, request: Request) -> JSONResponse:
        """Resumes a run."""
        await read_body(request, ContinueBody)
        run_id = request.path_params["run_id"]
        return await self._ask_all(lambda client: _requeued(client.continue_run(run_id)))

    async def _ask_all(self, call: Callable[[ServiceClient], Iterable[job_pb2.Job]]) -> JSONResponse:
        """Calls every service; an error names those that did not answer, so that the call is repeated."""
        answers = await run_in_threadpool(self._services.ask, call)
        for error in answers.errors.values():
            if error.code not in NO_ANSWER:
                raise error
        if answers.errors:
            names = " and the ".join(answers.errors)
            message = f"the {names} did not answer, the other services did: start it, and try again"
            raise ServiceError(message, grpc.StatusCode.UNAVAILABLE)
        return JSONResponse({"jobs": [job.job_id for jobs in answers.found.values() for job in jobs]})

    def _run(self, run_id: str) -> tuple[Run, Answers[list[job_pb2.Job]]]:
        answers = self._services.ask(lambda client: client.jobs(run_id, whole=True))
        runs = group_by_run(job for jobs in answers.require_any().values() for job in jobs)
        if not runs:
            if answers.errors:
                raise next(iter(answers.errors.values()))
            message = f"no service has a job of run {run_id}: the list of runs shows which there are"
            raise NotFoundError(message, grpc.StatusCode.NOT_FOUND)
        return runs[0], answers


def _requeued(answer: jobs_service_pb2.ContinueRunResponse) -> list[job_pb2.Job]:
    return [*answer.jobs, *answer.published]


def _finder(services: Services) -> Finder:
    """Finds artifacts of other runs among the newest jobs, which it requests once, and only when needed."""
    known: dict[str, tuple[job_pb2.Job, artifact_pb2.Artifact]] | None = None

    def find(uri: str) -> tuple[job_pb2.Job, artifact_pb2.Artifact] | None:
        nonlocal known
        if known is None:
            states = (job_pb2.Job.STATE_SUCCEEDED,)
            answers = services.ask(lambda client: client.jobs("", states, limit=_JOBS_SEARCHED))
            jobs = (job for found in answers.found.values() for job in found)
            known = {item.uri: (job, item) for job in jobs for item in job.outputs}
        return known.get(uri)

    return find
