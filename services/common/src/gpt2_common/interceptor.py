"""What happens around every call: the token is checked, the call is timed and logged, errors become statuses."""

import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
import grpc.aio
from grpc_status import rpc_status

from gpt2_common.errors import PipelineError, Unauthenticated
from gpt2_common.jobs.options import require_no_cause
from gpt2_common.metrics import ServiceMetrics
from gpt2_common.status import code_of, is_expected, status_of

_log = logging.getLogger(__name__)

_NO_TOKEN = "the call carries no valid token: send the metadata 'authorization: Bearer <token>'"

# Probes of orchestrators carry no token, and learn nothing but whether the service is up.
_OPEN_SERVICES = ("/grpc.health.v1.Health/",)


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Wraps each method of a server.

    Args:
        metrics: Counts the calls.
        token: Bearer token that calls must carry; None when none is needed.
    """

    def __init__(self, metrics: ServiceMetrics, token: str | None) -> None:
        self._metrics = metrics
        self._token = token

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        """Returns the method's handler, wrapped."""
        handler = await continuation(details)
        # The library's own services (health, reflection) come as plain functions; they need no mapping of errors.
        if handler is None or handler.request_streaming:
            return handler if handler is None or self._is_authorised(details) else _refuse_stream(handler)
        serializers = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            stream = self._wrap_stream(handler.unary_stream, details)
            return grpc.unary_stream_rpc_method_handler(stream, **serializers)
        unary = self._wrap_unary(handler.unary_unary, details)
        return grpc.unary_unary_rpc_method_handler(unary, **serializers)

    def _wrap_unary(self, method: Callable[..., Any], details: grpc.HandlerCallDetails) -> Callable[..., Any]:
        async def call(request: Any, context: Any) -> Any:
            started = time.monotonic()
            code = grpc.StatusCode.OK
            try:
                self._require_authorised(details)
                require_no_cause(request)
                result = method(request, context)
                return await result if isinstance(result, Awaitable) else result
            except grpc.aio.AbortError:
                code = grpc.StatusCode.UNKNOWN
                raise
            except Exception as error:  # noqa: BLE001 - every error becomes a status here
                code = code_of(status_of(error))
                await _abort(context, details.method, error)
            finally:
                self._done(details.method, code, started)

        return call

    def _wrap_stream(self, method: Callable[..., Any], details: grpc.HandlerCallDetails) -> Callable[..., Any]:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            started = time.monotonic()
            code = grpc.StatusCode.CANCELLED
            try:
                self._require_authorised(details)
                async for response in method(request, context):
                    yield response
                code = grpc.StatusCode.OK
            except Exception as error:  # noqa: BLE001 - every error becomes a status here
                code = code_of(status_of(error))
                await _abort(context, details.method, error)
            finally:
                self._done(details.method, code, started)

        return call

    def _is_authorised(self, details: grpc.HandlerCallDetails) -> bool:
        if self._token is None or details.method.startswith(_OPEN_SERVICES):
            return True
        sent = dict(details.invocation_metadata or ()).get("authorization", "")
        return hmac.compare_digest(sent.encode() if isinstance(sent, str) else sent, f"Bearer {self._token}".encode())

    def _require_authorised(self, details: grpc.HandlerCallDetails) -> None:
        if not self._is_authorised(details):
            raise Unauthenticated(_NO_TOKEN)

    def _done(self, method: str, code: grpc.StatusCode, started: float) -> None:
        seconds = time.monotonic() - started
        self._metrics.count_call(method, code.name, seconds)
        level = logging.DEBUG if method.startswith(_OPEN_SERVICES) else logging.INFO
        _log.log(
            level, "%s %s", method, code.name, extra={"rpc": method, "code": code.name, "seconds": round(seconds, 4)}
        )


async def _abort(context: Any, method: str, error: Exception) -> NoReturn:
    if not is_expected(error):
        _log.error("%s failed", method, exc_info=error)
    elif not isinstance(error, PipelineError):
        # Without the statement and its values, which can be a request.
        _log.warning("%s failed: %s", method, getattr(error, "orig", error))
    await context.abort_with_status(rpc_status.to_status(status_of(error)))
    raise AssertionError("abort_with_status always raises")


def _refuse_stream(handler: Any) -> Any:
    async def call(_requests: Any, context: Any) -> None:
        await context.abort_with_status(rpc_status.to_status(status_of(Unauthenticated(_NO_TOKEN))))

    if handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(call)
    return grpc.stream_unary_rpc_method_handler(call)
