"""An attempt of a training as a TrainJob: created or found, followed to its end, deleted when it is cancelled.

The TrainJob outlives the service: it runs on when the service stops, which follows it again after its restart. Its
status decides when it has ended. The log of the first node's pod brings progress, and the outcome sooner.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.json_format import ParseError
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, status_pb2

from gpt2.jobs.v1 import job_pb2
from gpt2_common.artifacts import Artifact, ArtifactStore
from gpt2_common.errors import FailedPrecondition, Unavailable
from gpt2_common.jobs.attempt import ReportSink
from gpt2_common.jobs.context import output
from gpt2_common.jobs.definition import JobKind
from gpt2_common.jobs.messages import JobWarning, Report, decode_message
from gpt2_common.jobs.outcome import Cancelled, Failed, Outcome, Succeeded, Suspended
from gpt2_common.jobs.rows import StoredJob
from gpt2_common.status import is_expected, status_of
from gpt2_trainer.settings import TrainerSettings
from gpt2_trainer.trainjobs.kubernetes import ClusterAddress, Kubernetes, connect_kubernetes
from gpt2_trainer.trainjobs.manifest import REQUEST_DIGEST, describe_trainjob, trainjob_name
from gpt2_trainer.trainjobs.pod import LOG_PREFIX
from gpt2_trainer.trainjobs.pod_status import ended_condition, failure_of, is_failed, why_waiting

_log = logging.getLogger(__name__)
_POLL_SECONDS = 2.0
_LAST_LOG_LINES = 20
_LOG_OVERLAP_SECONDS = 5
_FIRST = 0
"""The node that reports."""
Answer = TypeVar("Answer")


class TrainJobAttempt:
    """One attempt of a training; see gpt2_common.jobs.attempt.Attempt.

    Args:
        settings: What TrainJobs are like.
        address: Where the cluster is.
        kind: What to run.
        stored: The job, and its request.
        on_report: Takes progress and warnings.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        address: ClusterAddress,
        kind: JobKind,
        stored: StoredJob,
        on_report: ReportSink,
    ) -> None:
        self._address = address
        self._trainjob = describe_trainjob(settings, kind, stored)
        self._name = trainjob_name(stored.job.job_id)
        self._job = stored.job
        self._outputs = kind.stage.outputs
        self._artifacts = ArtifactStore(settings.artifact_root, settings.roots, settings.scratch_folder)
        self._on_report = on_report
        self._cancelled = asyncio.Event()
        self._detached = asyncio.Event()

    async def run(self, grace_seconds: float) -> Outcome:  # noqa: ARG002 - the pod's own grace period holds
        """Follows the TrainJob to its end, until it is cancelled, or until the service stops."""
        try:
            async with connect_kubernetes(self._address) as kubernetes:
                outcome = await self._unless(self._train(kubernetes), self._cancelled, self._detached)
                if outcome is None and self._cancelled.is_set():
                    outcome = await self._unless(self._remove(kubernetes), self._detached)
                return outcome or Suspended()
        except Exception as error:  # noqa: BLE001 - whatever it is, the job ends FAILED and says so
            if not is_expected(error):
                _log.exception("TrainJob %s could not be followed", self._name)
            return Failed(status_of(error))

    async def cancel(self) -> None:
        """Deletes the TrainJob; `run` returns when its pods are gone."""
        self._cancelled.set()

    async def suspend(self) -> None:
        """Leaves the TrainJob running, for the service to find after its restart."""
        self._detached.set()

    async def heartbeat(self) -> None:
        """Does nothing: a TrainJob has no lease, as its name keeps another one from the same work."""

    def abandon(self) -> None:
        """Leaves the TrainJob to the replica that has the job now."""
        self._detached.set()

    async def _unless(self, work: Awaitable[Outcome], *events: asyncio.Event) -> Outcome | None:
        """The end of a piece of work; None when one of the events came first."""
        task = asyncio.ensure_future(work)
        waits = [asyncio.create_task(event.wait()) for event in events]
        try:
            await asyncio.wait([task, *waits], return_when=asyncio.FIRST_COMPLETED)
            return await task if task.done() else None
        finally:
            for pending in (task, *waits):
                pending.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task

    async def _train(self, kubernetes: Kubernetes) -> Outcome:
        if self._job.attempt == 1:
            # What is there under its name is from before a retry, and has ended.
            await self._remove(kubernetes)
        if not await _retrying(lambda: kubernetes.create(self._trainjob)):
            await self._require_same(kubernetes)
            _log.info("TrainJob %s is there already: it is followed", self._name)
        ended = asyncio.create_task(self._wait_for_end(kubernetes))
        reported = asyncio.create_task(self._follow_pods(kubernetes))
        try:
            await asyncio.wait([ended, reported], return_when=asyncio.FIRST_COMPLETED)
            if reported.done():
                return reported.result()
            trainjob = ended.result()
        finally:
            for task in (ended, reported):
                task.cancel()
            await asyncio.gather(ended, reported, return_exceptions=True)
        if trainjob is None:
            return _deleted(self._name)
        return await self._outcome(kubernetes, trainjob)

    async def _wait_for_end(self, kubernetes: Kubernetes) -> dict[str, Any] | None:
        """Watches the TrainJob until it has ended. Returns it; None when it was deleted."""
        while True:
            try:
                async with aclosing(kubernetes.watch(self._name)) as states:
                    async for trainjob in states:
                        if trainjob is None or ended_condition(trainjob):
                            return trainjob
            except Unavailable as error:
                _log.warning("%s", error)
            await asyncio.sleep(_POLL_SECONDS)

    async def _follow_pods(self, kubernetes: Kubernetes) -> Outcome:
        """Passes on why a pod waits, and the reports in the log of each. Returns the outcome, once a log has it."""
        waiting, read_until = "", dict[str, float]()
        while True:
            pods = await _retrying(lambda: kubernetes.newest_pods(self._name))
            before, waiting = waiting, why_waiting(pods.values())
            if waiting and waiting != before:
                await self._on_report(job_pb2.Progress(phase=waiting))
            if _FIRST in pods and not waiting:
                name = pods[_FIRST]["metadata"]["name"]
                outcome = await self._follow_log(kubernetes, name, read_until)
                if outcome is not None:
                    return outcome
            await asyncio.sleep(_POLL_SECONDS)

    async def _follow_log(self, kubernetes: Kubernetes, pod: str, read_until: dict[str, float]) -> Outcome | None:
        """Passes on reports in a pod's log until it ends or is lost. Returns the outcome, where the log has it."""
        age = int(time.monotonic() - read_until[pod]) + _LOG_OVERLAP_SECONDS if pod in read_until else None
        async with aclosing(kubernetes.log(pod, follow=True, since_seconds=age)) as lines:
            async for line in lines:
                read_until[pod] = time.monotonic()
                message = _message_in(line)
                if isinstance(message, Report):
                    await self._on_report(message)
                elif isinstance(message, Succeeded | Failed):
                    return message
        return None

    async def _outcome(self, kubernetes: Kubernetes, trainjob: Mapping[str, Any]) -> Outcome:
        """The outcome of a TrainJob that has ended: from its last pods' logs, where they can be read, or without them.

        Where the first node has none, it is that of the node that failed.
        """
        pods = await _retrying(lambda: kubernetes.newest_pods(self._name))
        first = [pods[_FIRST]] if _FIRST in pods else []
        pod: Mapping[str, Any] | None = None
        last_lines: list[str] = []
        for pod in first + [pod for pod in pods.values() if is_failed(pod)]:
            outcome, last_lines = await self._read_log(kubernetes, pod["metadata"]["name"])
            if outcome is not None:
                return outcome
        ended = ended_condition(trainjob) or {}
        if ended["type"] == "Complete":
            return await asyncio.to_thread(self._published)
        return Failed(failure_of(ended, pod, last_lines))

    async def _read_log(self, kubernetes: Kubernetes, pod: str) -> tuple[Outcome | None, list[str]]:
        """Reads the end of a pod's log. Returns the outcome, where it is there, and the last lines of libraries."""
        outcome: Outcome | None = None
        progress: job_pb2.Progress | None = None
        last_lines: deque[str] = deque(maxlen=_LAST_LOG_LINES)
        async with aclosing(kubernetes.log(pod, follow=False)) as lines:
            async for line in lines:
                message = _message_in(line)
                if message is None:
                    last_lines.append(line)
                elif isinstance(message, JobWarning):
                    await self._on_report(message)
                elif isinstance(message, job_pb2.Progress):
                    progress = message
                elif isinstance(message, Succeeded | Failed):
                    outcome = message
        if progress is not None:
            await self._on_report(progress)
        return outcome, list(last_lines)

    def _published(self) -> Succeeded:
        """The outputs of a training that is complete, as it has published them.

        Raises:
            PipelineError: One is missing or unreadable.
        """
        found = []
        for item in self._outputs:
            uri = self._artifacts.output_uri(self._job.job_id, item.name)
            uri, manifest = self._artifacts.read_manifest(item.name, uri, item.kind)
            if manifest.producer.get("request_digest") != self._job.request_digest:
                raise FailedPrecondition(f"TrainJob {self._name} is complete, and {uri} is of another request")
            found.append(output(item.name, Artifact(uri, manifest, Path())))
        return Succeeded(found)

    async def _require_same(self, kubernetes: Kubernetes) -> None:
        found = await _retrying(lambda: kubernetes.get(self._name)) or self._trainjob
        digests = [item["metadata"].get("annotations", {}).get(REQUEST_DIGEST) for item in (found, self._trainjob)]
        if digests[0] != digests[1]:
            raise FailedPrecondition(
                f"TrainJob {self._name} does other work, of another trainer in this namespace: use another job_id"
            )

    async def _remove(self, kubernetes: Kubernetes) -> Outcome:
        """Deletes the TrainJob, and waits until its pods are gone: two must not work in one folder."""
        deleting = False
        while not await _retrying(lambda: kubernetes.is_gone(self._name)):
            if not deleting:
                await _retrying(lambda: kubernetes.delete(self._name))
                await self._on_report(job_pb2.Progress(phase="waiting for the cluster (deleting the TrainJob)"))
                deleting = True
            await asyncio.sleep(_POLL_SECONDS)
        return Cancelled()


def _message_in(line: str) -> Report | Outcome | None:
    """The message in a line of a pod's log; None where it is a library's, or truncated."""
    if not line.startswith(LOG_PREFIX):
        return None
    try:
        return decode_message(json.loads(line.removeprefix(LOG_PREFIX)))
    except (ValueError, KeyError, DecodeError, ParseError):
        return None


def _deleted(name: str) -> Failed:
    message = f"TrainJob {name} was deleted by someone else: start the job again with retry_failed, to resume it"
    return Failed(status_pb2.Status(code=code_pb2.ABORTED, message=message))


async def _retrying(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """Makes a call of the API, and retries while it is unavailable: the TrainJob runs on meanwhile."""
    while True:
        try:
            return await call()
        except Unavailable as error:
            _log.warning("%s", error)
            await asyncio.sleep(_POLL_SECONDS)
