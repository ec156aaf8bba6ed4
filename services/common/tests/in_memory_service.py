"""A service in the process of a test: its jobs, its start calls and its consumer, whose work the test does itself."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from event_bus import InMemoryEventBus
from google.rpc import code_pb2, status_pb2

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_catalogue import catalogue
from gpt2_common.artifacts import ArtifactStore
from gpt2_common.jobs.checks import RequestChecks
from gpt2_common.jobs.definition import JobKind, Work
from gpt2_common.jobs.manager import JobManager
from gpt2_common.jobs.outcome import Failed, Succeeded
from gpt2_common.jobs.reconciler import Reconciler
from gpt2_common.jobs.stage_starter import StageStarter
from gpt2_common.jobs.store import JobStore
from gpt2_common.lease import Lease, LeaseHolder
from gpt2_common.peers import Peers
from gpt2_common.settings import ServiceSettings


class InMemoryService:
    """The jobs of a service. Make it inside the event loop that its calls run in.

    Args:
        name: Name of the service.
        stage: The one stage that it takes.
        engine: Its database.
        bus: Takes its events, and brings it those of others.
        queue_limit: Jobs that may be queued at once.
    """

    def __init__(
        self, name: str, stage: str, engine: sql.Engine, bus: InMemoryEventBus, queue_limit: int = 100
    ) -> None:
        settings = ServiceSettings(artifact_root="file:///artifacts", database_url="sqlite://")
        kind = JobKind(stage=catalogue().stages[stage], work=Work("never:run"), settings=ServiceSettings)
        self._stage = stage
        self.store = JobStore(engine, name, queue_limit, LeaseHolder.this_process(30.0))
        artifacts = ArtifactStore("file:///artifacts", ["file:///"], Path("scratch"))
        checks = RequestChecks([kind.stage], {}, Peers(settings), artifacts)
        self.jobs = JobManager(self.store, [kind], settings, lambda: None, _never_launched, checks)
        bus.add_source(engine, f"/gpt2/{name}")
        bus.subscribe(name, StageStarter(self.jobs, asyncio.get_running_loop()).handle)

    async def start(self, request: Any) -> job_pb2.Job:
        """The start call."""
        return await self.jobs.start(self._stage, request)

    def succeed(self, job_id: str, *outputs: str) -> job_pb2.Job:
        """Does the work of a queued job: it makes artifacts of these names."""
        self.store.begin(job_id)
        made = [artifact_pb2.Artifact(name=name, kind=name, uri=f"file:///artifacts/{name}") for name in outputs]
        return self.store.finish(job_id, Succeeded(made))

    def fail(self, job_id: str) -> job_pb2.Job:
        """Does it badly."""
        self.store.begin(job_id)
        return self.store.finish(job_id, Failed(status_pb2.Status(code=code_pb2.DATA_LOSS, message="damaged")))

    def reconciler(self, started_elsewhere: Sequence[str] = ()) -> Reconciler:
        """Its reconciler; other services have started the jobs named."""
        lease = Lease(self.store.engine, f"reconciler {self.store.service}", LeaseHolder.this_process(30.0))
        asked = lambda _start, job_id: job_id in started_elsewhere  # noqa: E731
        return Reconciler(self.store, [self._stage], asked, 60.0, lease, lambda: None)


def _never_launched(*_: object) -> Any:
    raise AssertionError("a test does the work of an in-memory service itself")
