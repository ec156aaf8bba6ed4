"""Whether a service is ready, as health checks say: it serves, and jobs can write where artifacts are.

The names of its gRPC services, and the empty name, say whether it is ready. `liveness` says whether the process works:
a volume that cannot be written is no reason to start it again.
"""

import asyncio
import logging
from collections.abc import Sequence

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health_aio  # type: ignore[attr-defined]

from gpt2_common.artifacts.work import WorkFolders
from gpt2_common.status import WRITABLE_ADVICE, is_disk_full

LIVENESS = "liveness"
"""Name for the health check that decides on a restart."""

_log = logging.getLogger(__name__)
_CHECK_SECONDS = 30.0
_RETRY_SECONDS = 3.0
_ANSWER_SECONDS = 10.0
_Status = health_pb2.HealthCheckResponse.ServingStatus


class Readiness:
    """Sets the status of a service's health checks.

    Args:
        health: Answers the checks.
        services: Names of the gRPC services.
        folders: Where jobs work.
    """

    def __init__(self, health: health_aio.HealthServicer, services: Sequence[str], folders: WorkFolders) -> None:
        self._health = health
        self._names = ("", *services)
        self._folders = folders
        self._problem: str | None = None
        """Why it is not ready; empty where it is; None before the first check."""

        self._check: asyncio.Task[str] | None = None

    async def update(self) -> None:
        """Checks once whether artifacts can be written, and sets the status."""
        await self._health.set(LIVENESS, _Status.SERVING)
        # A file system that hangs, as one of a lost server does, keeps its thread: there is one at a time.
        self._check = self._check or asyncio.create_task(asyncio.to_thread(self._find_problem))
        await asyncio.wait([self._check], timeout=_ANSWER_SECONDS)
        if not self._check.done():
            await self._set("the file system does not answer")
            return
        problem, self._check = self._check.result(), None
        await self._set(problem)

    async def run(self) -> None:
        """Updates the status from time to time."""
        while True:
            await asyncio.sleep(_RETRY_SECONDS if self._problem else _CHECK_SECONDS)
            await self.update()

    def _find_problem(self) -> str:
        try:
            self._folders.require_writable()
        except OSError as error:
            # On a full disk jobs fail and say so, and the calls that lead to room again are answered.
            return "" if is_disk_full(error) else f"{error}; {WRITABLE_ADVICE}"
        return ""

    async def _set(self, problem: str) -> None:
        if problem == self._problem:
            return
        if problem:
            _log.error("not ready, as artifacts cannot be written: %s", problem)
        elif self._problem:
            _log.info("ready: artifacts can be written again")
        self._problem = problem
        for name in self._names:
            await self._health.set(name, _Status.NOT_SERVING if problem else _Status.SERVING)
