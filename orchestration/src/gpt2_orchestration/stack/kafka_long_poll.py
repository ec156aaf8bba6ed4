"""Long polling for librdkafka's mock cluster, which answers a fetch without records only when its wait is over.

A server between clients and the mock. It forwards requests unchanged and one at a time per connection, as a broker
handles them; a fetch that may wait is asked for without a wait, and held here until a record is produced.

Source: https://kafka.apache.org/protocol, Fetch versions 0 to 11. Later versions, which only other clients than this
project's speak, are forwarded too, and wait as the mock does.
"""

import asyncio
import struct
from contextlib import suppress

_PRODUCE, _FETCH = 0, 1
_LAST_FETCH_VERSION = 11
_MAX_FRAME_BYTES = 100 * 1024 * 1024
"""Larger requests are refused, as Apache Kafka does by default."""


class LongPollServer:
    """Forwards clients to a broker, and wakes their fetches when records are produced. Lives on one event loop.

    Args:
        host: Host of the broker.
        port: Port of the broker.
    """

    def __init__(self, host: str, port: int) -> None:
        self._broker = (host, port)
        # Set and replaced after each produce request.
        self._produced = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one client until it closes the connection, or the loop ends; for `asyncio.start_server`."""
        broker_reader, broker_writer = await asyncio.open_connection(*self._broker)
        broker = _Connection(broker_reader, broker_writer)
        client = _Connection(reader, writer)
        try:
            while True:
                await client.send(await self._answer(await client.receive(), broker))
        except (asyncio.IncompleteReadError, ConnectionError, struct.error, asyncio.CancelledError):
            # It has left or speaks another protocol; and Python 3.11 logs a cancelled handler as a fault.
            return
        finally:
            writer.close()
            broker_writer.close()

    async def _answer(self, request: bytes, broker: "_Connection") -> bytes:
        key, version = struct.unpack_from(">hh", request)
        if key == _FETCH and version <= _LAST_FETCH_VERSION:
            return await self._fetch(request, version, broker)
        answer = await broker.exchange(request)
        if key == _PRODUCE:
            self._produced.set()
            self._produced = asyncio.Event()
        return answer

    async def _fetch(self, request: bytes, version: int, broker: "_Connection") -> bytes:
        """Fetches until there are records or an error, or the wait that the client allows is over."""
        place = _place_of_wait(request)
        (wait_millis,) = struct.unpack_from(">i", request, place)
        deadline = asyncio.get_running_loop().time() + wait_millis / 1000
        at_once = request[:place] + struct.pack(">i", 0) + request[place + 4 :]
        while True:
            # Before the broker looks: what is produced after that must wake this fetch.
            produced = self._produced
            answer = await broker.exchange(at_once)
            if asyncio.get_running_loop().time() >= deadline or _has_content(answer, version):
                return answer
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await produced.wait()


class _Connection:
    """One end of a connection that carries frames: a size of four bytes, then so many bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self) -> bytes:
        """Reads a frame, without its size. Raises IncompleteReadError and ConnectionError."""
        (size,) = struct.unpack(">i", await self._reader.readexactly(4))
        if not 4 <= size <= _MAX_FRAME_BYTES:
            raise ConnectionAbortedError(f"a frame of {size} bytes is refused")
        return await self._reader.readexactly(size)

    async def send(self, frame: bytes) -> None:
        """Writes a frame. Raises ConnectionError."""
        self._writer.write(struct.pack(">i", len(frame)) + frame)
        await self._writer.drain()

    async def exchange(self, request: bytes) -> bytes:
        """Sends a request, and returns its answer."""
        await self.send(request)
        return await self.receive()


def _place_of_wait(request: bytes) -> int:
    """Where `max_wait_ms` is: after key, version, correlation id, client id (a nullable string) and replica id."""
    client_id = _Cursor(request, 8).number(">h")
    return 10 + max(client_id, 0) + 4


def _has_content(answer: bytes, version: int) -> bool:
    """Whether an answer to a fetch has records or an error of any partition."""
    cursor = _Cursor(answer)
    cursor.skip(4 if version == 0 else 8)  # correlation id, throttle time
    if version >= 7:
        if cursor.number(">h"):
            return True
        cursor.skip(4)  # session id
    for _ in range(cursor.number(">i")):
        cursor.skip(cursor.number(">h"))  # topic
        if any(_partition_has_content(cursor, version) for _ in range(cursor.number(">i"))):
            return True
    return False


def _partition_has_content(cursor: "_Cursor", version: int) -> bool:
    cursor.skip(4)  # partition
    error = cursor.number(">h")
    cursor.skip(8)  # high watermark
    if version >= 4:
        cursor.skip(16 if version >= 5 else 8)  # last stable offset, log start offset
        cursor.skip(16 * max(cursor.number(">i"), 0))  # aborted transactions
    if version >= 11:
        cursor.skip(4)  # preferred replica
    size = cursor.number(">i")
    cursor.skip(max(size, 0))
    return error != 0 or size > 0


class _Cursor:
    """Reads numbers from bytes, one after the other."""

    def __init__(self, content: bytes, place: int = 0) -> None:
        self._content = content
        self._place = place

    def number(self, form: str) -> int:
        """The number at the cursor, which moves behind it."""
        (value,) = struct.unpack_from(form, self._content, self._place)
        self._place += struct.calcsize(form)
        return int(value)

    def skip(self, count: int) -> None:
        """Moves the cursor."""
        self._place += count
