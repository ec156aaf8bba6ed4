"""Errors as answers: the HTTP status of each gRPC code, and one sentence. The one place where they are mapped."""

import logging
from collections.abc import Mapping

import grpc
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from gpt2_orchestration.client import ServiceError

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
"""As google/rpc/code.proto maps them. What is not here is 500."""


def problem(status: int, code: str, message: str) -> JSONResponse:
    """An error as every answer has it."""
    return JSONResponse({"error": {"code": code, "message": message}}, status)


def show_service_error(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001 - Starlette's signature
    """What a service refused, in its own words; who does not answer, in ours."""
    assert isinstance(error, ServiceError)
    return problem(STATUS_BY_CODE.get(error.code, 500), error.code.name, error.reason)


def show_http_error(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    """A request that no service was asked about."""
    assert isinstance(error, HTTPException)
    code = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 405: "UNIMPLEMENTED"}.get(error.status_code, "UNKNOWN")
    return problem(error.status_code, code, error.detail)


def show_defect(request: Request, error: Exception) -> JSONResponse:
    """A fault of the dashboard itself: told in its log, not to the browser."""
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem(500, "INTERNAL", "the dashboard failed at this: its log says where")
