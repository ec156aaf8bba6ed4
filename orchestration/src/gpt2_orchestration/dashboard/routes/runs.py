"""Runs: listed, shown with what was made of what, their trainings' curves; stopped and taken up again."""

from collections.abc import Callable, Iterable

import grpc
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_orchestration.client import NO_ANSWER, NotFoundError, ServiceClient, ServiceError
from gpt2_orchestration.dashboard.curves import TensorBoard
from gpt2_orchestration.dashboard.describing import Json, describe_job_whole, describe_run, describe_troubles
from gpt2_orchestration.dashboard.lineage import Finder, lineage
from gpt2_orchestration.dashboard.routes.bodies import Body, read_body
from gpt2_orchestration.run_list import newest_runs
from gpt2_orchestration.runs import Run, group_by_run
from gpt2_orchestration.services import Answers, Services

_DEFAULT_RUNS = 50
_MOST_RUNS = 5000
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
        services: Whom to ask.
        tensorboard: Who has the curves.
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
            Route("/runs/{run_id}/continue", self.go_on, methods=["POST"]),
        ]

    def show_all(self, request: Request) -> JSONResponse:
        """The newest runs."""
        text = request.query_params.get("limit", str(_DEFAULT_RUNS))
        if not text.isdecimal() or not 1 <= int(text) <= _MOST_RUNS:
            raise HTTPException(400, f"limit: must be 1 to {_MOST_RUNS}")
        found = newest_runs(self._services, int(text))
        runs = [describe_run(run) for run in found.runs]
        return JSONResponse({"runs": runs, "more": found.more, "troubles": describe_troubles(found.errors)})

    def show(self, request: Request) -> JSONResponse:
        """One run."""
        run, answers = self._run(request.path_params["run_id"])
        described = {**describe_run(run), "jobs": [describe_job_whole(job) for job in run.jobs]}
        graph = lineage(run.jobs, _finder(self._services))
        return JSONResponse({"run": described, "lineage": graph, "troubles": describe_troubles(answers.errors)})

    def training(self, request: Request) -> JSONResponse:
        """Curves and samples of the trainings of a run."""
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
        """Stops a run."""
        body = await read_body(request, CancelBody)
        run_id = request.path_params["run_id"]
        return await self._tell(lambda client: client.cancel_run(run_id, body.reason))

    async def go_on(self, request: Request) -> JSONResponse:
        """Takes a run up again."""
        await read_body(request, ContinueBody)
        run_id = request.path_params["run_id"]
        return await self._tell(lambda client: client.continue_run(run_id))

    async def _tell(self, what: Callable[[ServiceClient], Iterable[job_pb2.Job]]) -> JSONResponse:
        """Tells every service, and says whom it did not reach: a run is stopped when each has been told."""
        answers = await run_in_threadpool(self._services.ask, what)
        for error in answers.errors.values():
            if error.code not in NO_ANSWER:
                raise error
        if answers.errors:
            names = " and the ".join(answers.errors)
            message = f"the {names} did not hear of it, the other services did: start it, and repeat this"
            raise ServiceError(message, grpc.StatusCode.UNAVAILABLE)
        return JSONResponse({"jobs": [job.job_id for jobs in answers.found.values() for job in jobs]})

    def _run(self, run_id: str) -> tuple[Run, Answers[list[job_pb2.Job]]]:
        answers = self._services.ask(lambda client: client.jobs(run_id))
        runs = group_by_run(job for jobs in answers.require_any().values() for job in jobs)
        if not runs:
            if answers.errors:
                raise next(iter(answers.errors.values()))
            raise NotFoundError(f"no service has a job of run {run_id}: the list of runs shows which there are")
        return runs[0], answers


def _finder(services: Services) -> Finder:
    """Looks for artifacts of other runs among the newest jobs, which it asks for once, and only if it has to."""
    known: dict[str, tuple[job_pb2.Job, artifact_pb2.Artifact]] | None = None

    def find(digest: str) -> tuple[job_pb2.Job, artifact_pb2.Artifact] | None:
        nonlocal known
        if known is None:
            states = (job_pb2.Job.STATE_SUCCEEDED,)
            answers = services.ask(lambda client: client.jobs("", states, limit=_JOBS_SEARCHED))
            jobs = (job for found in answers.found.values() for job in found)
            known = {item.digest: (job, item) for job in jobs for item in job.outputs if item.kind != "version"}
        return known.get(digest)

    return find
