"""Talks to the services: channels with their credentials, start calls, jobs followed to their end.

Where the services are comes from the environment of the process that calls them, never from a pipeline's parameters, so
that neither addresses nor secrets enter ML Metadata or a cache key.

    GPT2_EXPORTER_ADDRESS, GPT2_TOKENIZER_ADDRESS, GPT2_TRAINER_ADDRESS, GPT2_REGISTRY_ADDRESS   host:port
    GPT2_CLIENT_TOKEN            bearer token
    GPT2_CLIENT_CA_FILE          PEM authorities; turns TLS on
    GPT2_CLIENT_CERTIFICATE_FILE, GPT2_CLIENT_KEY_FILE   for mutual TLS
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from gpt2.jobs.v1 import job_pb2, jobs_service_pb2, jobs_service_pb2_grpc
from gpt2_orchestration.calls import DEFAULT_PORTS, STUBS, StartCall
from gpt2_orchestration.job_states import FINAL_STATES, state_name
from gpt2_orchestration.proxies import channel_options, grpc_proxy_note

CALL_SECONDS = 30.0
"""Deadline of a call that is answered at once."""

_STREAM_SECONDS = 900.0
"""Deadline of a stream that generates."""

_WATCH_SECONDS = 120.0
"""Deadline of one stream of a job's changes, which another then takes up, so that a service that is dumb is noticed."""

_LOST_SECONDS = 300.0
"""How long a service may be away in the middle of a job before following it is given up."""

_JOBS_A_PAGE = 500

NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""Codes of a service that is away, and may be back."""


class ServiceError(Exception):
    """A call was refused or a service does not answer; the message says which and what to do.

    Args:
        message: The whole sentence.
        code: The call's status; UNKNOWN where no call was made.
        reason: The service's own sentence; the message where there is none.
    """

    def __init__(self, message: str, code: grpc.StatusCode = grpc.StatusCode.UNKNOWN, reason: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason or message


class NotFoundError(ServiceError):
    """The service answers, and does not have what was asked for."""

    def __init__(self, message: str, code: grpc.StatusCode = grpc.StatusCode.NOT_FOUND, reason: str = "") -> None:
        super().__init__(message, code, reason)


class JobFailed(ServiceError):
    """A job ended FAILED or CANCELLED."""

    def __init__(self, job: job_pb2.Job) -> None:
        self.job = job
        super().__init__(f"{job.kind} ({job.job_id}) is {state_name(job.state).upper()}: {job.error.message}")


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """Where the services are and how to prove who calls."""

    addresses: Mapping[str, str]
    token: str | None = field(default=None, repr=False)
    authority_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "ClientSettings":
        """Reads the variables that this module's docstring lists."""

        def path(name: str) -> Path | None:
            value = environment.get(name)
            return Path(value) if value else None

        return cls(
            addresses={
                service: environment.get(f"GPT2_{service.upper()}_ADDRESS", f"localhost:{port}")
                for service, port in DEFAULT_PORTS.items()
            },
            token=environment.get("GPT2_CLIENT_TOKEN") or None,
            authority_file=path("GPT2_CLIENT_CA_FILE"),
            certificate_file=path("GPT2_CLIENT_CERTIFICATE_FILE"),
            key_file=path("GPT2_CLIENT_KEY_FILE"),
        )


class ServiceClient:
    """One service, as a caller sees it.

    Args:
        service: Its short name.
        channel: A channel to it.
        address: Where it is, for errors.
        token: Bearer token to send.
        call_seconds: Deadline of a call that is answered at once.
    """

    def __init__(
        self, service: str, channel: grpc.Channel, address: str, token: str | None, call_seconds: float = CALL_SECONDS
    ) -> None:
        self.service = service
        self.address = address
        self._call_seconds = call_seconds
        self._own = STUBS[service](channel)
        self._jobs = jobs_service_pb2_grpc.JobsServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def call(self, method: str, request: Message, timeout_seconds: float | None = None) -> Any:
        """Calls a method of the service's own interface. Raises ServiceError."""
        return self._call(getattr(self._own, method), request, timeout_seconds or self._call_seconds)

    def stream(self, method: str, request: Message) -> Iterator[Any]:
        """Calls a streaming method of the service's own interface. Raises ServiceError."""
        with self._translated():
            yield from getattr(self._own, method)(request, timeout=_STREAM_SECONDS, metadata=self._metadata)

    def describe(self) -> jobs_service_pb2.DescribeServiceResponse:
        """Which service this is, and the version of its code. Raises ServiceError."""
        request = jobs_service_pb2.DescribeServiceRequest()
        answer: jobs_service_pb2.DescribeServiceResponse = self._call(
            self._jobs.DescribeService, request, self._call_seconds
        )
        return answer

    def version(self) -> str:
        """Version of the service's code. Raises ServiceError."""
        return self.describe().version

    def start(self, call: StartCall, request: Message) -> job_pb2.Job:
        """Makes a start call. Raises ServiceError."""
        job: job_pb2.Job = self.call(call.name, request).job
        return job

    def get(self, job_id: str) -> job_pb2.Job:
        """One job. Raises ServiceError."""
        job: job_pb2.Job = self._call(
            self._jobs.GetJob, jobs_service_pb2.GetJobRequest(job_id=job_id), self._call_seconds
        ).job
        return job

    def jobs(
        self, run_id: str, states: Sequence[job_pb2.Job.State.ValueType] = (), limit: int | None = None
    ) -> list[job_pb2.Job]:
        """Jobs, newest first, however many pages they take. Raises ServiceError.

        Args:
            run_id: Only jobs of this run; of all where it is empty.
            states: Only jobs in one of these; in all where there is none.
            limit: Most jobs, the newest; None for all.
        """
        found: list[job_pb2.Job] = []
        token = ""
        while limit is None or len(found) < limit:
            size = _JOBS_A_PAGE if limit is None else min(limit - len(found), _JOBS_A_PAGE)
            page, token = self.jobs_page(run_id, states, size, token)
            found += page
            if not token:
                break
        return found

    def jobs_page(
        self, run_id: str, states: Sequence[job_pb2.Job.State.ValueType], page_size: int, page_token: str
    ) -> tuple[list[job_pb2.Job], str]:
        """One page of what `jobs` returns, and the token of the next; empty on the last. Raises ServiceError."""
        request = jobs_service_pb2.ListJobsRequest(
            run_id=run_id, states=states, page_size=page_size, page_token=page_token
        )
        answer = self._call(self._jobs.ListJobs, request, self._call_seconds)
        return list(answer.jobs), answer.next_page_token

    def cancel(self, job_id: str, reason: str) -> job_pb2.Job:
        """Asks a job to stop. Raises ServiceError."""
        request = jobs_service_pb2.CancelJobRequest(job_id=job_id, reason=reason)
        job: job_pb2.Job = self._call(self._jobs.CancelJob, request, self._call_seconds).job
        return job

    def cancel_run(self, run_id: str, reason: str) -> list[job_pb2.Job]:
        """Stops a run in this service. Returns the jobs that were told. Raises ServiceError."""
        request = jobs_service_pb2.CancelRunRequest(run_id=run_id, reason=reason)
        return list(self._call(self._jobs.CancelRun, request, self._call_seconds).jobs)

    def continue_run(self, run_id: str) -> list[job_pb2.Job]:
        """Takes a run up again in this service. Returns the jobs that go on. Raises ServiceError."""
        request = jobs_service_pb2.ContinueRunRequest(run_id=run_id)
        return list(self._call(self._jobs.ContinueRun, request, self._call_seconds).jobs)

    def follow(self, job: job_pb2.Job, on_change: Callable[[job_pb2.Job], None]) -> job_pb2.Job:
        """Follows a job to its end; a service that restarts meanwhile is waited for.

        Args:
            job: What the start call returned.
            on_change: Hears of each change.

        Returns:
            The job, SUCCEEDED.

        Raises:
            JobFailed: It ended otherwise.
            ServiceError: The service was away for too long.
        """
        lost_since: float | None = None
        on_change(job)
        while job.state not in FINAL_STATES:
            try:
                for changed in self._changes(job):
                    job = changed
                    lost_since = None
                    on_change(job)
            except grpc.RpcError as error:
                now = time.monotonic()
                lost_since = lost_since or now
                if error.code() not in NO_ANSWER or now - lost_since > _LOST_SECONDS:
                    raise self._translate(error) from error
                time.sleep(1)
        if job.state != job_pb2.Job.STATE_SUCCEEDED:
            raise JobFailed(job)
        return job

    def _changes(self, job: job_pb2.Job) -> Iterator[job_pb2.Job]:
        """The changes of a job from here on, for a while. Raises grpc.RpcError."""
        request = jobs_service_pb2.WatchJobRequest(job_id=job.job_id, after_revision=job.revision)
        try:
            for answer in self._jobs.WatchJob(request, timeout=_WATCH_SECONDS, metadata=self._metadata):
                yield answer.job
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            # It may have had nothing to say, or be dead.
            ask = jobs_service_pb2.GetJobRequest(job_id=job.job_id)
            yield self._jobs.GetJob(ask, timeout=CALL_SECONDS, metadata=self._metadata).job

    def _call(self, method: Any, request: Message, timeout_seconds: float) -> Any:
        with self._translated():
            return method(request, timeout=timeout_seconds, metadata=self._metadata)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise self._translate(error) from error

    def _translate(self, error: grpc.RpcError) -> ServiceError:
        if error.code() in NO_ANSWER:
            variable = f"GPT2_{self.service.upper()}_ADDRESS"
            return ServiceError(
                f"the {self.service} at {self.address} does not answer: "
                f"start it (`gpt2 stack up`), or correct {variable}{grpc_proxy_note(self.address)}",
                error.code(),
            )
        kind = NotFoundError if error.code() == grpc.StatusCode.NOT_FOUND else ServiceError
        message = f"the {self.service} refused the call ({error.code().name}): {error.details()}"
        return kind(message, error.code(), error.details() or "")


@contextmanager
def connect(service: str, settings: ClientSettings, call_seconds: float = CALL_SECONDS) -> Iterator[ServiceClient]:
    """Opens a channel to a service, whose calls have the deadline given. It connects when it is first used."""
    address = settings.addresses[service]
    if settings.authority_file is None:
        channel = grpc.insecure_channel(address, channel_options(address))
    else:
        channel = grpc.secure_channel(address, _credentials(settings), channel_options(address))
    with channel:
        yield ServiceClient(service, channel, address, settings.token, call_seconds)


async def watch_to_end(service: str, settings: ClientSettings, job_id: str) -> job_pb2.Job:
    """Follows a job to its end, in an event loop. Raises grpc.aio.AioRpcError when the service is lost or refuses."""
    address = settings.addresses[service]
    metadata = (("authorization", f"Bearer {settings.token}"),) if settings.token else ()
    if settings.authority_file is None:
        channel = grpc.aio.insecure_channel(address, channel_options(address))
    else:
        channel = grpc.aio.secure_channel(address, _credentials(settings), channel_options(address))
    job = job_pb2.Job()
    async with channel:
        stub = jobs_service_pb2_grpc.JobsServiceStub(channel)
        while job.state not in FINAL_STATES:
            request = jobs_service_pb2.WatchJobRequest(job_id=job_id, after_revision=job.revision)
            try:
                async for answer in stub.WatchJob(request, timeout=_WATCH_SECONDS, metadata=metadata):
                    job = answer.job
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                    raise
                ask = jobs_service_pb2.GetJobRequest(job_id=job_id)
                job = (await stub.GetJob(ask, timeout=CALL_SECONDS, metadata=metadata)).job
    return job


def _credentials(settings: ClientSettings) -> grpc.ChannelCredentials:
    def read(path: Path | None) -> bytes | None:
        return path.read_bytes() if path else None

    return grpc.ssl_channel_credentials(
        root_certificates=read(settings.authority_file),
        private_key=read(settings.key_file),
        certificate_chain=read(settings.certificate_file),
    )
