"""Opens files as streams of bytes, decompressed according to their suffix, in flat memory."""

import gzip
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from gpt2_common.errors import DataLoss
from gpt2_exporter.files.listing import TextFile
from gpt2_exporter.rejects import reasons

_BLOCK = 1 << 20


@contextmanager
def open_stream(file: TextFile) -> Iterator[Any]:
    """Opens a file.

    Raises:
        DataLoss: It is compressed and damaged; raised by the reads from it.
    """
    with file.filesystem.open(file.path, "rb") as raw:
        try:
            if file.compression and not file.size:
                raise EOFError("it is empty, which no compressed file is")
            if file.compression == ".gz":
                with gzip.GzipFile(fileobj=raw) as stream:
                    yield stream
            elif file.compression == ".zst":
                # Arrow raises where the last frame is truncated; the bindings of zstandard take that for the end.
                with pa.CompressedInputStream(raw, "zstd") as stream:
                    yield Buffered(stream)
            else:
                yield raw
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _damaged(file, error) from error
        except OSError as error:
            # Arrow's own errors have no errno; those of the file itself keep their type and errno.
            if file.compression != ".zst" or type(error) is not OSError or error.errno is not None:
                raise
            raise _damaged(file, error) from error


@contextmanager
def open_seekable(file: TextFile, scratch: Path, check_cancelled: Callable[[], None]) -> Iterator[Any]:
    """Opens a file for random access; decompresses it to the disk first where necessary.

    Args:
        file: The file.
        scratch: Folder to decompress in. Nothing remains there, even when the process is killed.
        check_cancelled: Raises when the job has to stop.

    Raises:
        DataLoss: It is compressed and damaged.
    """
    if not file.compression:
        with open_stream(file) as stream:
            yield stream
        return
    with tempfile.TemporaryFile(dir=scratch) as decompressed:
        with open_stream(file) as stream:
            while block := stream.read(_BLOCK):
                check_cancelled()
                decompressed.write(block)
        decompressed.seek(0)
        yield decompressed


def _damaged(file: TextFile, error: Exception) -> DataLoss:
    return DataLoss(f"{file.uri} is damaged ({error}): replace it by a whole copy", uri=file.uri)


class Buffered:
    """Adds lines, exact reads and `peek` to a stream that can only be read forward.

    Args:
        stream: The stream.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._block = b""
        self._at = 0

    def read(self, size: int) -> bytes:
        """Returns so many bytes; fewer only at the end."""
        parts = []
        while size and self._fill():
            part = self._block[self._at : self._at + size]
            self._at += len(part)
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def peek(self, size: int) -> bytes:
        """Returns up to so many of the next bytes without consuming them."""
        self._fill()
        return self._block[self._at : self._at + size]

    def readline(self, size: int) -> bytes:
        """Returns a line with its line end, or so many bytes of it."""
        parts = []
        while size and self._fill():
            end = self._block.find(b"\n", self._at, self._at + size) + 1
            part = self._block[self._at : end or self._at + size]
            self._at += len(part)
            size -= len(part)
            parts.append(part)
            if end:
                break
        return b"".join(parts)

    def _fill(self) -> bool:
        if self._at == len(self._block):
            self._block, self._at = self._stream.read(_BLOCK), 0
        return bool(self._block)


def peek(stream: Any, size: int) -> bytes:
    """Returns the first bytes of a stream without consuming them; the stream must be at its beginning."""
    if isinstance(stream, Buffered):
        return stream.peek(size)
    begin: bytes = stream.read(size)
    stream.seek(0)
    return begin


def skip(stream: Any, size: int) -> None:
    """Moves so many bytes forward."""
    if size and not isinstance(stream, Buffered):
        stream.seek(stream.tell() + size)
        return
    while size and (block := stream.read(min(size, _BLOCK))):
        size -= len(block)


def read_lines(stream: Any) -> Iterator[tuple[bytes | None, int]]:
    """Yields each line with its line end, and its size in bytes; None for a line larger than the largest document."""
    while line := stream.readline(reasons.MAX_DOCUMENT_BYTES):
        size = len(line)
        if size < reasons.MAX_DOCUMENT_BYTES or line.endswith(b"\n"):
            yield line, size
            continue
        while not line.endswith(b"\n") and (line := stream.readline(reasons.MAX_DOCUMENT_BYTES)):
            size += len(line)
        yield None, size
