"""An attempt of a training as a TrainJob: created or found, followed by its pod's log, deleted when it is cancelled.

The TrainJob outlives the service: one that stops leaves it at work, and takes it up again when it is back.
"""

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from google.protobuf.json_format import ParseError
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, status_pb2

from gpt2.jobs.v1 import job_pb2
from gpt2_common.errors import FailedPrecondition, Unavailable
from gpt2_common.jobs.attempt import Failed, Outcome, Report, ReportSink, Succeeded, Suspended, cancelled, read_message
from gpt2_common.jobs.definition import JobKind
from gpt2_common.jobs.rows import StoredJob
from gpt2_common.status import is_expected, status_of
from gpt2_trainer.settings import TrainerSettings
from gpt2_trainer.trainjobs.failure import ended_condition, failure_of, why_waiting
from gpt2_trainer.trainjobs.kubernetes import ClusterAddress, Kubernetes, connect_kubernetes
from gpt2_trainer.trainjobs.manifest import REQUEST_DIGEST, describe_trainjob, trainjob_name
from gpt2_trainer.trainjobs.pod import MARK

_log = logging.getLogger(__name__)
_POLL_SECONDS = 2.0
_LAST_WORDS = 20
Answer = TypeVar("Answer")


class TrainJobAttempt:
    """One attempt of a training; see gpt2_common.jobs.attempt.Attempt.

    Args:
        settings: What TrainJobs are like.
        address: Where the cluster is.
        kind: What to run.
        stored: The job, and its request.
        on_report: Hears how far it is, and of warnings.
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
        self._is_first = stored.job.attempt == 1
        self._on_report = on_report
        self._cancelled = asyncio.Event()
        self._left = asyncio.Event()
        self._last_words: deque[str] = deque(maxlen=_LAST_WORDS)

    async def run(self, grace_seconds: float) -> Outcome:  # noqa: ARG002 - the pod's own grace period holds
        """Follows the TrainJob to its end, until it is cancelled, or until the service stops."""
        try:
            async with connect_kubernetes(self._address) as kubernetes:
                outcome = await self._unless_told(self._train(kubernetes), self._cancelled, self._left)
                if outcome is None and self._cancelled.is_set():
                    outcome = await self._unless_told(self._remove(kubernetes), self._left)
                return outcome or Suspended()
        except Exception as error:  # noqa: BLE001 - whatever it is, the job ends FAILED and says so
            if not is_expected(error):
                _log.exception("TrainJob %s could not be followed", self._name)
            return Failed(status_of(error))

    async def cancel(self) -> None:
        """Deletes the TrainJob; `run` returns when its pods are gone."""
        self._cancelled.set()

    async def suspend(self) -> None:
        """Leaves the TrainJob at work, for the service to find when it is back."""
        self._left.set()

    async def keep(self) -> None:
        """Does nothing: a TrainJob has no lease, as its name keeps another one from the same work."""

    def abandon(self) -> None:
        """Leaves the TrainJob to the replica that has the job now."""
        self._left.set()

    async def _unless_told(self, work: Awaitable[Outcome], *words: asyncio.Event) -> Outcome | None:
        """The end of a piece of work; None when one of the events came first."""
        task = asyncio.ensure_future(work)
        waits = [asyncio.create_task(word.wait()) for word in words]
        try:
            await asyncio.wait([task, *waits], return_when=asyncio.FIRST_COMPLETED)
            return await task if task.done() else None
        finally:
            for pending in (task, *waits):
                pending.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task

    async def _train(self, kubernetes: Kubernetes) -> Outcome:
        if self._is_first:
            # What is there under its name is from before a retry, and has ended.
            await self._remove(kubernetes)
        if not await _answered(lambda: kubernetes.create(self._trainjob)):
            await self._require_same(kubernetes)
            _log.info("TrainJob %s is there already: it is followed", self._name)
        while True:
            trainjob = await _answered(lambda: kubernetes.get(self._name))
            if trainjob is None:
                return _deleted(self._name)
            pod = await _answered(lambda: kubernetes.newest_pod(self._name))
            waiting = why_waiting(pod)
            outcome = await self._hear(kubernetes, pod) if pod is not None and not waiting else None
            if outcome is not None:
                return outcome
            if ended := ended_condition(trainjob):
                return Failed(failure_of(ended, pod, self._last_words))
            if waiting:
                await self._on_report(job_pb2.Progress(phase=waiting))
            await asyncio.sleep(_POLL_SECONDS)

    async def _require_same(self, kubernetes: Kubernetes) -> None:
        found = await _answered(lambda: kubernetes.get(self._name)) or self._trainjob
        digests = [item["metadata"].get("annotations", {}).get(REQUEST_DIGEST) for item in (found, self._trainjob)]
        if digests[0] != digests[1]:
            raise FailedPrecondition(
                f"TrainJob {self._name} does other work, of another trainer in this namespace: use another job_id"
            )

    async def _hear(self, kubernetes: Kubernetes, pod: Mapping[str, Any]) -> Outcome | None:
        """Passes on progress from a pod's log. Returns how the work has ended, where the log says so."""
        self._last_words.clear()
        async for line in kubernetes.log(pod["metadata"]["name"]):
            message = _message_in(line)
            if message is None:
                self._last_words.append(line)
            elif isinstance(message, Report):
                await self._on_report(message)
            elif isinstance(message, Succeeded | Failed):
                return message
        return None

    async def _remove(self, kubernetes: Kubernetes) -> Outcome:
        """Deletes the TrainJob, and waits until its pods are gone: two must not work in one folder."""
        while await _answered(lambda: kubernetes.get(self._name)) is not None:
            await _answered(lambda: kubernetes.delete(self._name))
            await asyncio.sleep(_POLL_SECONDS)
        return cancelled()


def _message_in(line: str) -> Report | Outcome | None:
    """What a line of a pod's log says; None where it is a library's, or was cut off on its way."""
    if not line.startswith(MARK):
        return None
    try:
        return read_message(json.loads(line.removeprefix(MARK)))
    except (ValueError, KeyError, DecodeError, ParseError):
        return None


def _deleted(name: str) -> Failed:
    message = f"TrainJob {name} was deleted by someone else: start the job again with retry_failed, to go on"
    return Failed(status_pb2.Status(code=code_pb2.ABORTED, message=message))


async def _answered(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """Makes a call of the API, again and again while it does not answer: the TrainJob works on meanwhile."""
    while True:
        try:
            return await call()
        except Unavailable as error:
            _log.warning("%s", error)
            await asyncio.sleep(_POLL_SECONDS)
