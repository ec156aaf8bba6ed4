"""gRPC client of the services: channels with credentials, start calls, and jobs followed to their end.

Addresses and credentials come from the caller's environment, never from a pipeline's parameters, so that they enter
neither ML Metadata nor a cache key.

    GPT2_EXPORTER_ADDRESS, GPT2_TOKENIZER_ADDRESS, GPT2_TRAINER_ADDRESS, GPT2_REGISTRY_ADDRESS   host:port
    GPT2_CLIENT_TOKEN            bearer token, or the file gpt2_client_token in the folder GPT2_SECRETS_DIR
    GPT2_CLIENT_CA_FILE          PEM certificate authorities; enables TLS
    GPT2_CLIENT_CERTIFICATE_FILE, GPT2_CLIENT_KEY_FILE   for mutual TLS
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import Struct
from google.rpc import error_details_pb2, status_pb2

from gpt2.jobs.v1 import job_pb2, jobs_service_pb2, jobs_service_pb2_grpc
from gpt2_catalogue import catalogue
from gpt2_orchestration.client.addresses import DEFAULT_PORTS, address_variable
from gpt2_orchestration.client.field_errors import FieldError, format_field_errors
from gpt2_orchestration.client.jobs import FINAL_STATES, error_text, state_name
from gpt2_orchestration.errors import InputError, UserError
from gpt2_proxies import channel_options, grpc_proxy_note

CALL_SECONDS = 30.0
"""Deadline of a unary call."""

_STREAM_SECONDS = 900.0
"""Deadline of a stream of generated text."""

_WATCH_SECONDS = 120.0
"""Deadline of one WatchJob stream; it is then renewed, so that an unresponsive service is detected."""

_LOST_SECONDS = 300.0
"""How long a service may be unavailable while a job is followed."""

_JOBS_A_PAGE = 500

NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""Status codes of a service that is temporarily unavailable."""


class ServiceError(UserError):
    """A call was refused or a service does not answer.

    Args:
        message: What happened and what to do.
        code: The call's status code; UNKNOWN where no call was made.
        reason: The service's message alone; by default, `message`.
        field_errors: Invalid fields of the request.
    """

    def __init__(
        self,
        message: str,
        code: grpc.StatusCode = grpc.StatusCode.UNKNOWN,
        reason: str = "",
        field_errors: Sequence[FieldError] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason or message
        self.field_errors = field_errors


class NotFoundError(ServiceError):
    """The requested object does not exist (NOT_FOUND)."""


class JobFailed(ServiceError):
    """A job ended FAILED or CANCELLED."""

    def __init__(self, job: job_pb2.Job) -> None:
        self.job = job
        super().__init__(f"{job.kind} ({job.job_id}) is {state_name(job.state).upper()}: {error_text(job)}")


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """Addresses of the services, and credentials."""

    addresses: Mapping[str, str]
    token: str | None = field(default=None, repr=False)
    authority_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "ClientSettings":
        """Reads the variables in this module's docstring. Raises InputError."""

        def path(name: str) -> Path | None:
            value = environment.get(name)
            return Path(value) if value else None

        token = environment.get("GPT2_CLIENT_TOKEN") or _secret("gpt2_client_token", environment)
        if not (token.isascii() and token.isprintable()):
            raise InputError(
                "GPT2_CLIENT_TOKEN: contains a character that gRPC metadata cannot carry, such as a line break; "
                "set it to the token that `gpt2 clients add` printed"
            )
        return cls(
            addresses={
                service: environment.get(address_variable(service), f"localhost:{port}")
                for service, port in DEFAULT_PORTS.items()
            },
            token=token or None,
            authority_file=path("GPT2_CLIENT_CA_FILE"),
            certificate_file=path("GPT2_CLIENT_CERTIFICATE_FILE"),
            key_file=path("GPT2_CLIENT_KEY_FILE"),
        )


def _secret(name: str, environment: Mapping[str, str]) -> str:
    """Reads a file of the folder GPT2_SECRETS_DIR, as the services do; empty where there is none. Raises InputError."""
    folder = environment.get("GPT2_SECRETS_DIR")
    if not folder or not (path := Path(folder) / name).exists():
        return ""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"GPT2_SECRETS_DIR: {path} cannot be read ({error}): make it readable") from None


class ServiceClient:
    """Client of one service.

    Args:
        service: Its short name.
        channel: A channel to it.
        address: Where it is, for errors.
        token: Bearer token to send.
        call_seconds: Deadline of a unary call.
    """

    def __init__(
        self, service: str, channel: grpc.Channel, address: str, token: str | None, call_seconds: float = CALL_SECONDS
    ) -> None:
        self.service = service
        self.address = address
        self._call_seconds = call_seconds
        self._channel = channel
        self._jobs = jobs_service_pb2_grpc.JobsServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def call(self, method: str, request: Message, timeout_seconds: float | None = None) -> Any:
        """Calls a method of the service's own interface. Raises ServiceError."""
        return self._call(self._own(method, self._channel.unary_unary), request, timeout_seconds or self._call_seconds)

    def stream(self, method: str, request: Message) -> Iterator[Any]:
        """Calls a streaming method of the service's own interface. Raises ServiceError."""
        with self._translated():
            call = self._own(method, self._channel.unary_stream)
            yield from call(request, timeout=_STREAM_SECONDS, metadata=self._metadata)

    def describe(self) -> jobs_service_pb2.DescribeServiceResponse:
        """Name, version and event state of the service. Raises ServiceError."""
        request = jobs_service_pb2.DescribeServiceRequest()
        answer: jobs_service_pb2.DescribeServiceResponse = self._call(
            self._jobs.DescribeService, request, self._call_seconds
        )
        return answer

    def version(self) -> str:
        """Version of the service's code. Raises ServiceError."""
        return self.describe().version

    def start(self, name: str, request: Message) -> job_pb2.Job:
        """Makes the start call of a stage. Raises ServiceError."""
        job: job_pb2.Job = self.call(name, request).job
        return job

    def get(self, job_id: str) -> job_pb2.Job:
        """One job. Raises ServiceError."""
        job: job_pb2.Job = self._call(
            self._jobs.GetJob, jobs_service_pb2.GetJobRequest(job_id=job_id), self._call_seconds
        ).job
        return job

    def jobs(
        self,
        run_id: str,
        states: Sequence[job_pb2.Job.State.ValueType] = (),
        limit: int | None = None,
        whole: bool = False,
    ) -> list[job_pb2.Job]:
        """Lists jobs, newest first, over all pages. Raises ServiceError.

        Args:
            run_id: Only jobs of this run; empty for all.
            states: Only jobs in these states; empty for all.
            limit: Maximum number of jobs; None for all.
            whole: With complete plans, rather than names of remaining stages.
        """
        found: list[job_pb2.Job] = []
        view = jobs_service_pb2.JOB_VIEW_FULL if whole else jobs_service_pb2.JOB_VIEW_BASIC
        request = jobs_service_pb2.ListJobsRequest(run_id=run_id, states=states, view=view)
        while limit is None or len(found) < limit:
            request.page_size = _JOBS_A_PAGE if limit is None else min(limit - len(found), _JOBS_A_PAGE)
            answer = self._call(self._jobs.ListJobs, request, self._call_seconds)
            found += answer.jobs
            request.page_token = answer.next_page_token
            if not request.page_token:
                break
        return found

    def runs_page(
        self, run_ids: Sequence[str], page_size: int, page_token: str
    ) -> tuple[list[jobs_service_pb2.RunSummary], str]:
        """A page of this service's parts of runs, newest first, and the next page's token. Raises ServiceError.

        Args:
            run_ids: Only these runs, at most 1000; empty for all.
            page_size: Maximum number of runs, at most 1000.
            page_token: Token to start after; empty for the first page.
        """
        request = jobs_service_pb2.ListRunsRequest(run_ids=run_ids, page_size=page_size, page_token=page_token)
        answer = self._call(self._jobs.ListRuns, request, self._call_seconds)
        return list(answer.runs), answer.next_page_token

    def runs_of(self, run_ids: Sequence[str]) -> list[jobs_service_pb2.RunSummary]:
        """This service's parts of runs, at most 1000, newest first. Raises ServiceError."""
        found, token = self.runs_page(run_ids, len(run_ids), "")
        while token:
            more, token = self.runs_page(run_ids, len(run_ids), token)
            found += more
        return found

    def cancel(self, job_id: str, reason: str) -> job_pb2.Job:
        """Requests cancellation of a job. Raises ServiceError."""
        request = jobs_service_pb2.CancelJobRequest(job_id=job_id, reason=reason)
        job: job_pb2.Job = self._call(self._jobs.CancelJob, request, self._call_seconds).job
        return job

    def cancel_run(self, run_id: str, reason: str) -> list[job_pb2.Job]:
        """Requests cancellation of a run in this service. Returns the affected jobs. Raises ServiceError."""
        request = jobs_service_pb2.CancelRunRequest(run_id=run_id, reason=reason)
        return list(self._call(self._jobs.CancelRun, request, self._call_seconds).jobs)

    def continue_run(
        self, run_id: str, corrections: Mapping[str, Struct] | None = None, validate_only: bool = False
    ) -> jobs_service_pb2.ContinueRunResponse:
        """Resumes a run in this service. Returns the requeued and republished jobs. Raises ServiceError.

        Args:
            run_id: The run.
            corrections: Changes of requests by stage; null clears a field.
            validate_only: Validate the corrections without applying them.
        """
        request = jobs_service_pb2.ContinueRunRequest(
            run_id=run_id, corrections=corrections, validate_only=validate_only
        )
        answer: jobs_service_pb2.ContinueRunResponse = self._call(self._jobs.ContinueRun, request, self._call_seconds)
        return answer

    def validate_stage(self, start: str, request: Message, artifacts: Sequence[str]) -> list[FieldError]:
        """Has the service validate the request of a stage. Returns its errors. Raises ServiceError.

        Args:
            start: Name of the start call.
            request: Its request without inputs from earlier stages; or a Struct in its JSON form.
            artifacts: Names of the artifacts that earlier stages make.
        """
        ask = jobs_service_pb2.ValidateStageRequest(start=start, artifacts=artifacts)
        json_format.ParseDict(json_format.MessageToDict(request, preserving_proto_field_name=True), ask.request)
        answer = self._call(self._jobs.ValidateStage, ask, self._call_seconds)
        return [FieldError(item.field, item.description) for item in answer.violations]

    def follow(self, job: job_pb2.Job, on_change: Callable[[job_pb2.Job], None]) -> job_pb2.Job:
        """Follows a job to its end, across restarts of the service.

        Args:
            job: The job, as the start call returned it.
            on_change: Called with the job after each change.

        Returns:
            The succeeded job.

        Raises:
            JobFailed: It failed or was cancelled.
            ServiceError: The service was unavailable for too long.
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
        """Changes of a job after its revision, until the stream's deadline. Raises grpc.RpcError."""
        request = jobs_service_pb2.WatchJobRequest(job_id=job.job_id, after_revision=job.revision)
        try:
            for answer in self._jobs.WatchJob(request, timeout=_WATCH_SECONDS, metadata=self._metadata):
                yield answer.job
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
            # Without changes the stream is idle; a hung service looks the same.
            ask = jobs_service_pb2.GetJobRequest(job_id=job.job_id)
            yield self._jobs.GetJob(ask, timeout=CALL_SECONDS, metadata=self._metadata).job

    def _own(self, method: str, make: Callable[..., Any]) -> Any:
        """A method of the service's own interface, by its descriptor."""
        service = catalogue().services[self.service]
        found = service.methods_by_name[method]
        return make(
            f"/{service.full_name}/{method}",
            request_serializer=GetMessageClass(found.input_type).SerializeToString,
            response_deserializer=GetMessageClass(found.output_type).FromString,
        )

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
        variable = address_variable(self.service)
        if error.code() in NO_ANSWER:
            return ServiceError(
                f"the {self.service} at {self.address} does not answer: "
                f"start it (`gpt2 stack up`), or set {variable} to its address{grpc_proxy_note(self.address)}",
                error.code(),
            )
        if error.code() == grpc.StatusCode.UNIMPLEMENTED:
            return ServiceError(
                f"the {self.service} at {self.address} is older than this command and does not have the call: "
                f"upgrade it, or set {variable} to where the {self.service} is if another server answers there",
                error.code(),
            )
        kind = NotFoundError if error.code() == grpc.StatusCode.NOT_FOUND else ServiceError
        field_errors = _field_errors(error)
        reason = format_field_errors(field_errors) if field_errors else error.details() or ""
        message = f"the {self.service} refused the call ({error.code().name}): {reason}"
        return kind(message, error.code(), reason, field_errors)


@contextmanager
def connect(service: str, settings: ClientSettings, call_seconds: float = CALL_SECONDS) -> Iterator[ServiceClient]:
    """Opens a channel to a service; it connects on first use. `call_seconds` is the deadline of unary calls."""
    address = settings.addresses[service]
    if settings.authority_file is None:
        channel = grpc.insecure_channel(address, channel_options(address))
    else:
        channel = grpc.secure_channel(address, _credentials(settings), channel_options(address))
    with channel:
        yield ServiceClient(service, channel, address, settings.token, call_seconds)


async def watch_to_end(service: str, settings: ClientSettings, job_id: str) -> job_pb2.Job:
    """Follows a job to its end with asyncio. Raises grpc.aio.AioRpcError."""
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


def _field_errors(error: grpc.RpcError) -> list[FieldError]:
    """The invalid fields in the details of a refused call's status."""
    violations = error_details_pb2.BadRequest()
    trailing: Iterable[tuple[str, bytes]] = error.trailing_metadata() or ()  # type: ignore[assignment]
    for name, value in trailing:
        if name == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Is(violations.DESCRIPTOR):
                    detail.Unpack(violations)
    return [FieldError(item.field, item.description) for item in violations.field_violations]


def _credentials(settings: ClientSettings) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=_read("GPT2_CLIENT_CA_FILE", settings.authority_file),
        private_key=_read("GPT2_CLIENT_KEY_FILE", settings.key_file),
        certificate_chain=_read("GPT2_CLIENT_CERTIFICATE_FILE", settings.certificate_file),
    )


def _read(variable: str, path: Path | None) -> bytes | None:
    try:
        return path.read_bytes() if path else None
    except OSError as error:
        message = f"{variable}: {path} cannot be read ({error.strerror}); set it to a PEM file"
        raise InputError(message) from error
