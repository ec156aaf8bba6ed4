"""Wraps every call: authenticates the caller, validates the request, logs and counts the call, maps errors."""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import Message
from grpc_status import rpc_status

from gpt2_common.errors import InvalidRequest, PipelineError
from gpt2_common.identity import Authenticator, Identity, set_caller
from gpt2_common.jobs.options import require_no_cause
from gpt2_common.metrics import ServiceMetrics
from gpt2_common.status import code_of, is_expected, status_of
from gpt2_rules import violations

_log = logging.getLogger(__name__)

# Probes of orchestrators have no credentials, and learn nothing but whether the service is up.
_OPEN_SERVICES = ("/grpc.health.v1.Health/",)


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Wraps each method of a server.

    Args:
        metrics: Counts the calls.
        authenticator: Authenticates callers.
    """

    def __init__(self, metrics: ServiceMetrics, authenticator: Authenticator) -> None:
        self._metrics = metrics
        self._authenticator = authenticator

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """Returns the method's handler, wrapped."""
        handler = await continuation(details)
        if handler is None:
            return None
        serializers = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.request_streaming and handler.response_streaming:
            stream = self._wrap_stream(handler.stream_stream, details)
            return grpc.stream_stream_rpc_method_handler(stream, **serializers)
        if handler.request_streaming:
            return grpc.stream_unary_rpc_method_handler(self._wrap_unary(handler.stream_unary, details), **serializers)
        if handler.response_streaming:
            stream = self._wrap_stream(handler.unary_stream, details)
            return grpc.unary_stream_rpc_method_handler(stream, **serializers)
        return grpc.unary_unary_rpc_method_handler(self._wrap_unary(handler.unary_unary, details), **serializers)

    def _wrap_unary(self, method: Callable[..., Any], details: grpc.HandlerCallDetails) -> Callable[..., Any]:
        async def call(request: Any, context: Any) -> Any:
            async with self._around(details, request, context):
                result = method(request, context)
                return await result if isinstance(result, Awaitable) else result

        return call

    def _wrap_stream(self, method: Callable[..., Any], details: grpc.HandlerCallDetails) -> Callable[..., Any]:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            async with self._around(details, request, context):
                answers = method(request, context)
                if isinstance(answers, Awaitable):
                    # The health service's: it writes into the context.
                    await answers
                else:
                    async for response in answers:
                        yield response

        return call

    @asynccontextmanager
    async def _around(self, details: grpc.HandlerCallDetails, request: Any, context: Any) -> AsyncIterator[None]:
        started = time.monotonic()
        code = grpc.StatusCode.CANCELLED
        caller = None
        try:
            caller = await self._authenticate(details, context)
            _require_valid(request)
            yield
            code = grpc.StatusCode.OK
        except grpc.aio.AbortError:
            code = grpc.StatusCode.UNKNOWN
            raise
        except Exception as error:  # noqa: BLE001 - every error becomes a status here
            code = code_of(status_of(error))
            await _abort(context, details.method, error)
        finally:
            self._log_call(details.method, caller, code, started)

    async def _authenticate(self, details: grpc.HandlerCallDetails, context: Any) -> Identity | None:
        """Authenticates the caller, and keeps it for the call; None for open services. Raises Unauthenticated."""
        if details.method.startswith(_OPEN_SERVICES):
            return None
        metadata = dict(details.invocation_metadata or ())
        caller = await self._authenticator.authenticate(metadata, context.auth_context())
        set_caller(caller)
        return caller

    def _log_call(self, method: str, caller: Identity | None, code: grpc.StatusCode, started: float) -> None:
        seconds = time.monotonic() - started
        self._metrics.count_call(method, code.name, seconds)
        level = logging.DEBUG if method.startswith(_OPEN_SERVICES) else logging.INFO
        fields = {"rpc": method, "code": code.name, "seconds": round(seconds, 4)}
        if caller is not None:
            fields["caller"] = caller.actor
        _log.log(level, "%s %s", method, code.name, extra=fields)


def _require_valid(request: Any) -> None:
    """Raises InvalidRequest where a request breaks the rules of its fields.

    Requests of start calls are validated where jobs are started, with the rest of what can be wrong with them.
    """
    require_no_cause(request)
    if not isinstance(request, Message) or "job" in request.DESCRIPTOR.fields_by_name:
        return
    if found := violations(request):
        raise InvalidRequest(found)


async def _abort(context: Any, method: str, error: Exception) -> NoReturn:
    if not is_expected(error):
        _log.error("%s failed", method, exc_info=error)
    elif not isinstance(error, PipelineError):
        # Without the statement and its values, which can be a request.
        _log.warning("%s failed: %s", method, getattr(error, "orig", error))
    await context.abort_with_status(rpc_status.to_status(status_of(error)))
    raise AssertionError("abort_with_status always raises")
