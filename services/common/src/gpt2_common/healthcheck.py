"""Asks a server whether it serves: `python -m gpt2_common.healthcheck HOST:PORT`, for containers."""

import os
import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_SECONDS = 3.0


def is_serving(address: str) -> bool:
    """Whether the server at an address answers SERVING. Uses TLS where GPT2_TLS_CERTIFICATE_FILE is set."""
    # A container asks itself.
    options = [("grpc.enable_http_proxy", 0)]
    certificate = os.environ.get("GPT2_TLS_CERTIFICATE_FILE")
    if certificate:
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(Path(certificate).read_bytes()), options)
    else:
        channel = grpc.insecure_channel(address, options)
    with channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_SECONDS)
        except grpc.RpcError:
            return False
    serving: bool = answer.status == health_pb2.HealthCheckResponse.SERVING
    return serving


if __name__ == "__main__":
    sys.exit(0 if is_serving(sys.argv[1]) else 1)
