"""A server of MongoDB's wire protocol that serves made-up documents from memory, as fast as it can.

It shows how fast a reader could be if no database had work to do. It knows only what an export asks for: one collection
of documents `{_id: ObjectId, text: string}` that are all of one size, read in the order of `_id`.

export_stand_in.py DOCUMENTS CHARACTERS: prints its port and serves until its standard input ends.
"""

import random
import socketserver
import struct
import sys
import threading
from typing import Any

import bson
import numpy as np

_HEADER = struct.Struct("<iiiiI")
_OP_MSG = 2013
_POOL = 1000
_BATCH = 1000
# Type and empty name in the array, then size, type and name in the document.
_ID_AT = 2 + 4 + 5
_WORDS = 20_000


class Documents:
    """The documents: number n has the `_id` n and a text out of a pool."""

    def __init__(self, count: int, characters: int) -> None:
        self.count = count
        self._pool = np.array([list(_document(text)) for text in texts(_POOL, characters)], np.uint8)

    def batch(self, begin: int, end: int) -> bytes:
        """The elements of an array of documents in BSON: each after its type and its (empty) name."""
        numbers = np.arange(begin, end, dtype=">u8")
        rows = self._pool[np.arange(begin, end) % _POOL]
        rows[:, _ID_AT + 4 : _ID_AT + 12] = numbers.view(np.uint8).reshape(-1, 8)
        return rows.tobytes()


def _document(text: str) -> bytes:
    return b"\x03\0" + bson.encode({"_id": bson.ObjectId(b"\0" * 12), "text": text})


def texts(count: int, characters: int) -> list[str]:
    """Made-up texts of words whose frequencies fall as they do in a language; the same in every run."""
    chance = random.Random(1)
    letters = "eeeeeeeeeeeetttttttttaaaaaaaaooooooooiiiiiiinnnnnnnsssssshhhhhhrrrrrrddddlllcccuuummmwwffggyyppbbvk"
    words = ["".join(chance.choices(letters, k=chance.randint(2, 9))) for _ in range(_WORDS)]
    weights = [1 / (rank + 3) for rank in range(_WORDS)]
    return [" ".join(chance.choices(words, weights, k=characters // 3))[:characters] for _ in range(count)]


class Handler(socketserver.BaseRequestHandler):
    """One connection."""

    def handle(self) -> None:
        """Answers until the client is gone."""
        while (message := self._receive()) is not None:
            request, command = message
            self._answer(request, command)

    def _receive(self) -> tuple[int, dict[str, Any]] | None:
        header = self._exactly(16)
        if header is None:
            return None
        size, request, _, code = struct.unpack("<iiii", header)
        body = self._exactly(size - 16) or b""
        if code != _OP_MSG:
            # The first greeting is in the old form of a query: flags, name, two numbers, document.
            return -request, bson.decode(body[body.index(b"\0", 4) + 9 :])
        return request, bson.decode(body[5 : 5 + int.from_bytes(body[5:9], "little")])

    def _exactly(self, size: int) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            block = self.request.recv(size - len(data))
            if not block:
                return None
            data += block
        return bytes(data)

    def _answer(self, request: int, command: dict[str, Any]) -> None:
        name = next(iter(command))
        server: Server = self.server  # type: ignore[assignment]
        if name == "find":
            ids = _range(command.get("filter", {}), server.documents.count)
            begin, end = ids
            if command.get("sort", {}).get("_id") == -1:
                begin = max(begin, end - 1)
            if command.get("limit"):
                end = min(end, begin + command["limit"])
            self._batch(request, "firstBatch", begin, end)
        elif name == "getMore":
            begin, end = server.cursors.pop(command["getMore"])
            self._batch(request, "nextBatch", begin, end)
        elif name == "count":
            self._send(request, bson.encode({"n": server.documents.count, "ok": 1.0}))
        elif name == "aggregate":
            self._send(
                request,
                bson.encode({"cursor": {"id": 0, "ns": "d.c", "firstBatch": self._aggregate(command)}, "ok": 1.0}),
            )
        else:
            greeting = {"ismaster": True, "maxWireVersion": 21, "minWireVersion": 0, "maxBsonObjectSize": 16 << 20}
            greeting |= {"maxMessageSizeBytes": 48_000_000, "maxWriteBatchSize": 100_000, "helloOk": True, "ok": 1.0}
            self._send(request, bson.encode(greeting))

    def _aggregate(self, command: dict[str, Any]) -> list[dict[str, Any]]:
        count = self.server.documents.count  # type: ignore[attr-defined]
        first = command["pipeline"][0]
        if "$sample" not in first:
            return [{"_id": 1, "n": count}]
        begin, end = _range(command["pipeline"][1]["$match"], count)
        step = max(1, (end - begin) // first["$sample"]["size"])
        return [{"_id": bson.ObjectId(number.to_bytes(12, "big"))} for number in range(begin + step, end, step)]

    def _batch(self, request: int, name: str, begin: int, end: int) -> None:
        server: Server = self.server  # type: ignore[assignment]
        middle = min(end, begin + _BATCH)
        cursor = 0
        if middle < end:
            cursor = server.remember(middle, end)
        array = server.documents.batch(begin, middle)
        array = struct.pack("<i", len(array) + 5) + array + b"\0"
        inner = b"\x04" + name.encode() + b"\0" + array
        inner += b"\x12id\0" + struct.pack("<q", cursor) + b"\x02ns\0\x04\0\0\0d.c\0"
        inner = struct.pack("<i", len(inner) + 5) + inner + b"\0"
        outer = b"\x03cursor\0" + inner + b"\x01ok\0" + struct.pack("<d", 1.0)
        self._send(request, struct.pack("<i", len(outer) + 5) + outer + b"\0")

    def _send(self, request: int, body: bytes) -> None:
        if request < 0:
            reply = struct.pack("<iqii", 8, 0, 0, 1) + body
            self.request.sendall(struct.pack("<iiii", 16 + len(reply), 1, -request, 1) + reply)
        else:
            self.request.sendall(_HEADER.pack(21 + len(body), 1, request, _OP_MSG, 0) + b"\0" + body)


def _range(query: dict[str, Any], count: int) -> tuple[int, int]:
    condition = query.get("_id", {})
    begin, end = 0, count
    if "$gt" in condition:
        begin = int.from_bytes(condition["$gt"].binary, "big") + 1
    if "$lte" in condition:
        end = min(count, int.from_bytes(condition["$lte"].binary, "big") + 1)
    return begin, max(begin, end)


class Server(socketserver.ThreadingTCPServer):
    """The server, and the cursors that are open."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, documents: Documents) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.documents = documents
        self.cursors: dict[int, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._next = 1

    def remember(self, begin: int, end: int) -> int:
        """Opens a cursor."""
        with self._lock:
            self._next += 1
            self.cursors[self._next] = (begin, end)
            return self._next


def main() -> None:
    """Serves until standard input ends."""
    with Server(Documents(int(sys.argv[1]), int(sys.argv[2]))) as server:
        print(server.server_address[1], flush=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        sys.stdin.read()


if __name__ == "__main__":
    main()
