"""MongoDB's wire protocol over TCP: messages in, documents out.

https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/
"""

import socketserver
import struct
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

import bson
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.errors import BSONError

from gpt2_orchestration.stack.mongodb.errors import CommandError

CODEC: CodecOptions[dict[str, Any]] = CodecOptions(
    document_class=dict, datetime_conversion=DatetimeConversion.DATETIME_MS
)
"""How documents are decoded: dates keep their milliseconds, whatever the year."""
LARGEST_MESSAGE = 48_000_000

_HEADER = struct.Struct("<iiii")
_REPLY, _QUERY, _MESSAGE = 1, 2004, 2013
_CHECKSUM, _NO_ANSWER = 1, 2
_INTERNAL_ERROR = 1
_INVALID_BSON = 22


class Command(NamedTuple):
    """A command and the sequences of documents that came beside it, by their names, as BSON."""

    body: dict[str, Any]
    sequences: dict[str, list[bytes]]


Answer = Callable[[Command], dict[str, Any]]


class WireServer(socketserver.ThreadingTCPServer):
    """Serves each connection on a thread.

    Args:
        address: Host and port.
        answer: Carries out a command; raises CommandError.
    """

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], answer: Answer) -> None:
        super().__init__(address, _Connection)
        self.answer = answer
        self.numbers = count(1)


class _Connection(socketserver.StreamRequestHandler):
    server: WireServer

    def handle(self) -> None:
        """Answers until the client is gone, or says what is no message."""
        try:
            while (message := self._receive()) is not None:
                self._serve(*message)
        except (OSError, ValueError, IndexError, struct.error, BSONError):
            return

    def _receive(self) -> tuple[int, int, bytes] | None:
        header = self.rfile.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return None
        size, request, _, code = _HEADER.unpack(header)
        if not _HEADER.size < size <= LARGEST_MESSAGE:
            return None
        body = self.rfile.read(size - _HEADER.size)
        return (request, code, body) if len(body) == size - _HEADER.size else None

    def _serve(self, request: int, code: int, body: bytes) -> None:
        if code == _QUERY:
            # Drivers greet in this old form: flags, name, two numbers, document.
            begin = body.index(b"\0", 4) + 9
            command = Command(_decode(body[begin:]), {})
            self._send(request, _REPLY, struct.pack("<iqii", 8, 0, 0, 1) + bson.encode(self._answer(command)))
            return
        if code != _MESSAGE:
            raise ValueError(f"operation {code}")
        [flags] = struct.unpack_from("<I", body)
        try:
            answer = self._answer(_parse(body[4:-4] if flags & _CHECKSUM else body[4:]))
        except BSONError as error:
            answer = {"ok": 0.0, "errmsg": f"invalid BSON: {error}", "code": _INVALID_BSON}
        if not flags & _NO_ANSWER:
            self._send(request, _MESSAGE, b"\0\0\0\0\0" + bson.encode(answer))

    def _answer(self, command: Command) -> dict[str, Any]:
        try:
            return {**self.server.answer(command), "ok": 1.0}
        except CommandError as error:
            return {"ok": 0.0, "errmsg": error.message, "code": error.code, **error.details}
        except Exception as error:  # noqa: BLE001 - the client gets the error, the server keeps running
            return {"ok": 0.0, "errmsg": f"{type(error).__name__}: {error}", "code": _INTERNAL_ERROR}

    def _send(self, request: int, code: int, body: bytes) -> None:
        header = _HEADER.pack(_HEADER.size + len(body), next(self.server.numbers) & 0x7FFFFFFF, request, code)
        self.wfile.write(header + body)


def _decode(raw: bytes) -> dict[str, Any]:
    document: dict[str, Any] = bson.decode(raw[: int.from_bytes(raw[:4], "little")], CODEC)
    return document


def _parse(sections: bytes) -> Command:
    body: dict[str, Any] = {}
    sequences: dict[str, list[bytes]] = {}
    at = 0
    while at < len(sections):
        kind = sections[at]
        size = int.from_bytes(sections[at + 1 : at + 5], "little")
        content = sections[at + 1 : at + 1 + size]
        if size < 5 or len(content) < size or kind > 1:
            raise ValueError(f"section of kind {kind} and {size} bytes")
        at += 1 + size
        if kind == 0:
            body = bson.decode(content, CODEC)
            continue
        end = content.index(b"\0", 4)
        sequences[content[4:end].decode()] = _split(content[end + 1 :])
    return Command(body, sequences)


def _split(documents: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(documents):
        size = int.from_bytes(documents[at : at + 4], "little")
        if not 5 <= size <= len(documents) - at:
            raise ValueError(f"document of {size} bytes")
        found.append(documents[at : at + size])
        at += size
    return found
