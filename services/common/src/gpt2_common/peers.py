"""Calls of a service to the others: to look up their jobs, and to validate a run's stages that are theirs.

A service works without its peers: PeerUnavailable is for the caller to handle.
"""

import asyncio
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message

from gpt2.jobs.v1 import job_pb2, jobs_service_pb2, jobs_service_pb2_grpc
from gpt2_common.errors import PeerUnavailable
from gpt2_common.settings import ServiceSettings, read_setting_file
from gpt2_proxies import channel_options
from gpt2_rules import Violation

_CALL_SECONDS = 5.0
# By default a channel to a peer that was away fails calls for up to two minutes after it is back.
_RECONNECT = (("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 1000))


class Peers:
    """The other services of a deployment. Channels are opened when they are first used, in the running event loop.

    Args:
        settings: Where the services are, and how to prove who calls.

    Raises:
        SettingsError: A file of the credentials cannot be read.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self._addresses = settings.peer_addresses
        token = settings.client_token
        self._metadata = (("authorization", f"Bearer {token.get_secret_value()}"),) if token else ()
        self._credentials = _credentials(settings)
        self._channels: dict[str, grpc.aio.Channel] = {}

    def is_configured(self, service: str) -> bool:
        """Whether a service has an address."""
        return service in self._addresses

    async def find_job(self, service: str, job_id: str) -> job_pb2.Job | None:
        """A job of another service; None when it has none of that id. Raises PeerUnavailable."""
        try:
            answer = await self._call(service, "GetJob", jobs_service_pb2.GetJobRequest(job_id=job_id))
        except _NotFound:
            return None
        job: job_pb2.Job = answer.job
        return job

    async def validate(self, service: str, request: jobs_service_pb2.ValidateStageRequest) -> list[Violation]:
        """What another service finds wrong with a stage without its data. Raises PeerUnavailable."""
        answer = await self._call(service, "ValidateStage", request)
        return [(violation.field, violation.description) for violation in answer.violations]

    async def close(self) -> None:
        """Closes the channels."""
        await asyncio.gather(*(channel.close(None) for channel in self._channels.values()))
        self._channels.clear()

    async def _call(self, service: str, method: str, request: Message) -> Any:
        variable = f"GPT2_{service.upper()}_ADDRESS"
        if not self.is_configured(service):
            raise PeerUnavailable(f"the address of the {service} is not configured: set {variable}", service=service)
        stub = jobs_service_pb2_grpc.JobsServiceStub(self._channel(service))
        try:
            return await getattr(stub, method)(request, timeout=_CALL_SECONDS, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.NOT_FOUND:
                raise _NotFound from error
            raise PeerUnavailable(
                f"the {service} at {self._addresses[service]} did not answer ({error.code().name}: {error.details()}): "
                f"start it, or set {variable} and GPT2_CLIENT_TOKEN or GPT2_CLIENT_CA_FILE to what it needs",
                service=service,
            ) from error

    def _channel(self, service: str) -> grpc.aio.Channel:
        if service not in self._channels:
            address = self._addresses[service]
            options = [*_RECONNECT, *channel_options(address)]
            self._channels[service] = (
                grpc.aio.insecure_channel(address, options)
                if self._credentials is None
                else grpc.aio.secure_channel(address, self._credentials, options)
            )
        return self._channels[service]


class _NotFound(Exception):
    """The peer answers, and does not have what was asked for."""


def _credentials(settings: ServiceSettings) -> grpc.ChannelCredentials | None:
    if settings.client_ca_file is None:
        return None
    certificate, key = settings.client_certificate_file, settings.client_key_file
    return grpc.ssl_channel_credentials(
        root_certificates=read_setting_file("CLIENT_CA_FILE", settings.client_ca_file),
        private_key=read_setting_file("CLIENT_KEY_FILE", key) if key else None,
        certificate_chain=read_setting_file("CLIENT_CERTIFICATE_FILE", certificate) if certificate else None,
    )
