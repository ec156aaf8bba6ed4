"""Asks a server in the same container whether it serves; for containers' health checks, which run every few seconds.

    python -I -S .../gpt2_common/healthcheck.py             the gRPC server on the port of GPT2_LISTEN
    python -I -S .../gpt2_common/healthcheck.py HOST:PORT   another gRPC server
    python -I -S .../gpt2_common/healthcheck.py http://...  a page that must answer 200

Importing grpc takes half a second of CPU, most of what an idle service uses. So a server without TLS is asked over a
plain socket, by the five frames of HTTP/2 (RFC 9113) that one call of grpc.health.v1.Health/Check takes.
"""

import os
import socket
import sys

_SECONDS = 3.0
_MAX_ANSWER_BYTES = 1 << 16
_DATA, _HEADERS, _SETTINGS, _GOAWAY = 0, 1, 4, 7
_END_STREAM, _END_HEADERS = 1, 4
_FRAME_HEAD_BYTES = 9
_EMPTY_MESSAGE = b"\0\0\0\0\0"
_SERVING_MESSAGE = b"\0\0\0\0\2\x08\x01"
"""HealthCheckResponse with the status SERVING, after gRPC's prefix of five bytes."""


def is_serving(address: str) -> bool:
    """Whether the server at an address answers SERVING.

    Uses TLS where GPT2_TLS_CERTIFICATE_FILE is set. A server that asks for client certificates is shown that of
    GPT2_CLIENT_CERTIFICATE_FILE and GPT2_CLIENT_KEY_FILE.

    Raises:
        OSError: A file cannot be read.
    """
    certificate = _read("GPT2_TLS_CERTIFICATE_FILE")
    if certificate is not None:
        return _is_serving_tls(address, certificate)
    try:
        return _ask(address)
    except OSError:
        return False


def page_answers(uri: str) -> bool:
    """Whether a page (`http://HOST:PORT/PATH`) answers 200."""
    address, _, path = uri.removeprefix("http://").partition("/")
    try:
        with _connect(address) as connection:
            connection.sendall(f"GET /{path} HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
            with connection.makefile("rb") as answer:
                return answer.readline(100).split(b" ")[1:2] == [b"200"]
    except OSError:
        return False


def _ask(address: str) -> bool:
    with _connect(address) as connection:
        connection.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(_SETTINGS, 0, 0, b"")
            + _frame(_HEADERS, _END_HEADERS, 1, _request_headers(address))
            + _frame(_DATA, _END_STREAM, 1, _EMPTY_MESSAGE)
        )
        with connection.makefile("rb") as answer:
            read = 0
            while read < _MAX_ANSWER_BYTES:
                head = answer.read(_FRAME_HEAD_BYTES)
                if len(head) < _FRAME_HEAD_BYTES:
                    return False
                length, kind, flags, stream = int.from_bytes(head[:3]), head[3], head[4], int.from_bytes(head[5:])
                payload = answer.read(length)
                read += _FRAME_HEAD_BYTES + length
                if stream == 1 and kind == _DATA and payload:
                    return payload == _SERVING_MESSAGE
                if kind == _GOAWAY or (stream == 1 and flags & _END_STREAM):
                    return False
    return False


def _connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _request_headers(address: str) -> bytes:
    """The headers of the call, in HPACK (RFC 7541): static entries, and literals without Huffman's code."""

    def text(value: str) -> bytes:
        return bytes((len(value),)) + value.encode()

    return (
        b"\x83\x86"  # :method POST, :scheme http
        + b"\x04" + text("/grpc.health.v1.Health/Check")  # :path
        + b"\x01" + text(address)  # :authority
        + b"\x0f\x10" + text("application/grpc")  # content-type
        + b"\x00" + text("te") + text("trailers")
    )  # fmt: skip


def _is_serving_tls(address: str, certificate: bytes) -> bool:
    # What `python -S` has left out, of which grpc is a part.
    import site

    site.main()
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    client = (_read("GPT2_CLIENT_KEY_FILE"), _read("GPT2_CLIENT_CERTIFICATE_FILE"))
    credentials = grpc.ssl_channel_credentials(certificate, *client)
    # A container asks itself.
    with grpc.secure_channel(address, credentials, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_SECONDS)
        except grpc.RpcError:
            return False
    serving: bool = answer.status == health_pb2.HealthCheckResponse.SERVING
    return serving


def _read(variable: str) -> bytes | None:
    path = os.environ.get(variable)
    if not path:
        return None
    with open(path, "rb") as file:  # noqa: PTH123 - importing pathlib takes as long as the rest
        return file.read()


def main(arguments: list[str]) -> int:
    """Runs the check; its exit status is the answer."""
    target = arguments[0] if arguments else f"localhost:{os.environ.get('GPT2_LISTEN', '').rpartition(':')[2]}"
    return 0 if (page_answers if target.startswith("http://") else is_serving)(target) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
