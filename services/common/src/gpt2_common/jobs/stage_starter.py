"""Planned runs: when a stage has succeeded, the service that takes the next one starts it.

A service knows only its own start calls. It fills their inputs from artifacts of earlier stages, and starts them on
behalf of the actor of the stage before, which is that of the run's first job.
"""

import asyncio
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from sqlalchemy.exc import DBAPIError

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.events.v1 import events_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_common.errors import (
    DataLoss,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from gpt2_common.events.consumer import RetryLater
from gpt2_common.identity import Identity, set_caller
from gpt2_common.jobs.creation import create_refused
from gpt2_common.jobs.definition import JobKind
from gpt2_common.jobs.handovers import complete_handover_to
from gpt2_common.jobs.manager import JobManager
from gpt2_common.jobs.options import next_job_id, stage_name
from gpt2_common.status import status_of
from gpt2_contracts.events import CloudEvent, InvalidEvent

_JOB_STATE_CHANGED = events_pb2.JobStateChanged.DESCRIPTOR.full_name
_RETRIABLE = (ResourceExhausted, Unavailable, DBAPIError, TimeoutError)
_REFUSED = (InvalidRequest, NotFound, FailedPrecondition, DataLoss)
_SECONDS = 60.0


class StageStarter:
    """Starts the stages that this service takes.

    Args:
        jobs: Its jobs.
        loop: Where they run.
    """

    def __init__(self, jobs: JobManager, loop: asyncio.AbstractEventLoop) -> None:
        self._jobs = jobs
        self._loop = loop

    def handle(self, event: CloudEvent) -> None:
        """Handles an event; called from the consumer's thread.

        Raises:
            RetryLater: It cannot be handled now.
            InvalidEvent: It never can.
        """
        if event.type != _JOB_STATE_CHANGED:
            return
        job = _read(event)
        self._complete_handover(job)
        if job.state != job_pb2.Job.STATE_SUCCEEDED or not job.plan.stages:
            return
        kind = self._jobs.by_name.get(job.plan.stages[0].start)
        if kind is None:
            return
        started = asyncio.run_coroutine_threadsafe(self._start(kind, job, event), self._loop)
        try:
            started.result(_SECONDS)
        except _RETRIABLE as error:
            started.cancel()
            raise RetryLater(
                f"stage {stage_name(job.plan.stages[0])} of run {job.run_id} cannot start yet: {error}"
            ) from None

    def _complete_handover(self, job: job_pb2.Job) -> None:
        """Completes the handover to a job, if the job before it is here. Raises RetryLater."""
        store = self._jobs.store
        try:
            complete_handover_to(store.engine, store.service, job.job_id)
        except DBAPIError as error:
            raise RetryLater(f"the handover to {job.job_id} cannot be completed yet: {error.orig}") from None

    async def _start(self, kind: JobKind, before: job_pb2.Job, event: CloudEvent) -> None:
        set_caller(Identity(actor=before.actor))
        options = _options(before, event)
        request: Any = None
        try:
            request = _request(kind, before)
            request.job.CopyFrom(options)
            await self._jobs.start(kind.name, request)
        except _REFUSED as error:
            refused_request = before.plan.stages[0].request if request is None else request
            refused = await asyncio.to_thread(
                create_refused, self._jobs.store, kind.name, options, refused_request, status_of(error)
            )
            self._jobs.changed(refused.job_id)


def _read(event: CloudEvent) -> job_pb2.Job:
    try:
        return events_pb2.JobStateChanged.FromString(event.data).job
    except DecodeError as error:
        raise InvalidEvent(f"event {event.id} of {event.source} is no {_JOB_STATE_CHANGED}: {error}") from error


def _options(before: job_pb2.Job, event: CloudEvent) -> job_pb2.JobOptions:
    """The options of the stage after a job: its id, and the rest of the plan."""
    plan = job_pb2.RunPlan(
        stages=before.plan.stages[1:],
        artifacts=_artifacts(before),
        cause=job_pb2.EventReference(source=event.source, id=event.id),
    )
    return job_pb2.JobOptions(job_id=next_job_id(before), run_id=before.run_id, plan=plan)


def _artifacts(before: job_pb2.Job) -> list[artifact_pb2.Artifact]:
    """The artifacts that a run has made so far; of two with the same name, the later one."""
    made = {artifact.name: artifact for artifact in before.plan.artifacts}
    made.update((artifact.name, artifact) for artifact in before.outputs)
    return list(made.values())


def _request(kind: JobKind, before: job_pb2.Job) -> Message:
    """The request of the stage after a job. Raises InvalidRequest."""
    stage = before.plan.stages[0]
    request = kind.request()
    try:
        json_format.ParseDict(json_format.MessageToDict(stage.request), request)
    except json_format.ParseError as error:
        raise InvalidRequest([(f"plan.{stage_name(stage)}.request", str(error))]) from error
    uris = {artifact.name: artifact.uri for artifact in _artifacts(before)}
    kind.stage.fill_inputs(request, uris)
    return request
