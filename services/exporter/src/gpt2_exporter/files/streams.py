"""Opens files as streams of bytes, decompressed by the end of their names; nothing is held but what is asked for."""

import gzip
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from gpt2_common.errors import DataLoss
from gpt2_exporter.corpus import record
from gpt2_exporter.files.listing import TextFile

_BLOCK = 1 << 20


@contextmanager
def open_stream(file: TextFile) -> Iterator[Any]:
    """Opens a file.

    Raises:
        DataLoss: It is compressed, and damaged; raised by whatever reads from it.
    """
    with file.filesystem.open(file.path, "rb") as raw:
        try:
            if file.compression and not file.size:
                raise EOFError("it is empty, which no compressed file is")
            if file.compression == ".gz":
                with gzip.GzipFile(fileobj=raw) as stream:
                    yield stream
            elif file.compression == ".zst":
                # Arrow says so where the last frame is cut off; the bindings of zstandard take that for the end.
                with pa.CompressedInputStream(raw, "zstd") as stream:
                    yield Buffered(stream)
            else:
                yield raw
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise _damaged(file, error) from error
        except OSError as error:
            # Arrow's own errors have no number; those of the file beneath keep their type and theirs.
            if file.compression != ".zst" or type(error) is not OSError or error.errno is not None:
                raise
            raise _damaged(file, error) from error


@contextmanager
def open_seekable(file: TextFile, scratch: Path, check_cancelled: Callable[[], None]) -> Iterator[Any]:
    """Opens a file so that any part of it can be read; one that is compressed is unpacked to the disk first.

    Args:
        file: What to open.
        scratch: Folder to unpack in. Nothing is left there, even by a process that is killed.
        check_cancelled: Raises when the job is to stop.

    Raises:
        DataLoss: It is compressed, and damaged.
    """
    if not file.compression:
        with open_stream(file) as stream:
            yield stream
        return
    with tempfile.TemporaryFile(dir=scratch) as unpacked:
        with open_stream(file) as stream:
            while block := stream.read(_BLOCK):
                check_cancelled()
                unpacked.write(block)
        unpacked.seek(0)
        yield unpacked


def _damaged(file: TextFile, error: Exception) -> DataLoss:
    return DataLoss(f"{file.uri} is damaged ({error}): replace it by a whole copy", uri=file.uri)


class Buffered:
    """Gives a stream that can only be read forward the lines and exact reads of a file.

    Args:
        stream: What to read.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._block = b""
        self._at = 0

    def read(self, size: int) -> bytes:
        """Up to so many bytes; fewer only at the end."""
        parts = []
        while size and self._fill():
            part = self._block[self._at : self._at + size]
            self._at += len(part)
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def peek(self, size: int) -> bytes:
        """The next bytes, which are not taken: so many, or those of a block that ends before."""
        self._fill()
        return self._block[self._at : self._at + size]

    def readline(self, size: int) -> bytes:
        """A line with its end, or so many bytes of it."""
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
    """The first bytes of a stream that is at its beginning, and stays there."""
    if isinstance(stream, Buffered):
        return stream.peek(size)
    begin: bytes = stream.read(size)
    stream.seek(0)
    return begin


def skip(stream: Any, size: int) -> None:
    """Goes on so many bytes."""
    if size and not isinstance(stream, Buffered):
        stream.seek(stream.tell() + size)
        return
    while size and (block := stream.read(min(size, _BLOCK))):
        size -= len(block)


def read_lines(stream: Any) -> Iterator[tuple[bytes | None, int]]:
    """Yields each line and its bytes, line end included; None in place of a line that is too large to be held."""
    while line := stream.readline(record.LARGEST_DOCUMENT):
        size = len(line)
        if size < record.LARGEST_DOCUMENT or line.endswith(b"\n"):
            yield line, size
            continue
        while not line.endswith(b"\n") and (line := stream.readline(record.LARGEST_DOCUMENT)):
            size += len(line)
        yield None, size
