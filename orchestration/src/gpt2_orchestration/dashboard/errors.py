"""Errors as HTTP responses: the one mapping of gRPC codes to HTTP status codes."""

import logging
from collections.abc import Mapping

import grpc
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from gpt2_orchestration.client.service_client import ServiceError

_log = logging.getLogger(__name__)

STATUS_BY_CODE: Mapping[grpc.StatusCode, int] = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.DATA_LOSS: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
"""As google/rpc/code.proto maps them; others are 500."""


def problem(status: int, code: str, message: str) -> JSONResponse:
    """The response to an error."""
    return JSONResponse({"error": {"code": code, "message": message}}, status)


def show_service_error(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001 - Starlette's signature
    """Responds to an error of a service, or to a service that does not answer."""
    assert isinstance(error, ServiceError)
    return problem(STATUS_BY_CODE.get(error.code, 500), error.code.name, error.reason)


def show_http_error(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    """Responds to a request that reaches no service."""
    assert isinstance(error, HTTPException)
    code = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 405: "UNIMPLEMENTED"}.get(error.status_code, "UNKNOWN")
    return problem(error.status_code, code, error.detail)


def show_defect(request: Request, error: Exception) -> JSONResponse:
    """Responds to an internal error (a bug): the log has the traceback, the browser only a message."""
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem(500, "INTERNAL", "internal error of the dashboard (bug): report it with the traceback in its log")
