"""Reads documents out of text files: `.txt` and `.md` are one document each, a `.jsonl` file one a line."""

import codecs
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2_common.errors import FailedPrecondition, NotFound
from gpt2_exporter.corpus.record import LARGEST_DOCUMENT, TOO_LARGE, Record, unusable_reason
from gpt2_exporter.files.listing import TextFile

DEFAULT_ENCODING = "utf-8"
NOT_JSON = "not a JSON object"
_LINES = ".jsonl"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a document stands: its file, by position in the list; where reading goes on in it, and at which line."""

    file: int
    offset: int
    line: int


class FileDocuments:
    """The documents of a list of files, as records.

    Args:
        files: What to read, in order.
        text_field: Path of the text in a line of a `.jsonl` file.
        encoding: Encoding of the files.

    Raises:
        FailedPrecondition: There is a `.jsonl` file, and lines cannot be found in that encoding.
    """

    unit = "bytes"

    def __init__(self, files: Sequence[TextFile], text_field: str, encoding: str) -> None:
        self._files = files
        self._path = text_field.split(".")
        self._encoding = codecs.lookup(encoding).name
        self._begins = [sum(file.size for file in files[:index]) for index in range(len(files))]
        lines = [file for file in files if file.suffix == _LINES]
        if lines and "\n".encode(encoding) != b"\n":
            raise FailedPrecondition(
                f"{lines[0].uri} cannot be read in the encoding {encoding}, in which a line's end is not one byte: "
                "convert the .jsonl files to utf-8, or import the other files alone"
            )

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self._files)

    @property
    def fingerprint(self) -> str:
        """Names the files by address and size."""
        content = [[file.uri, file.size] for file in self._files]
        return hashlib.sha256(json.dumps([content, self._path, self._encoding]).encode()).hexdigest()

    def done(self, place: Place, read: int) -> float:  # noqa: ARG002 - other sources count documents
        """Bytes read up to a place."""
        return self._begins[place.file] + place.offset

    def encode_place(self, place: Place) -> str:
        """Writes a place, to be given to `records` in another process."""
        return json.dumps([place.file, place.offset, place.line])

    def records(self, after: str | None) -> Iterator[Record]:
        """Yields the records, from the first one or from the one after a place.

        Raises:
            NotFound: A file has gone since it was listed.
        """
        start = Place(*json.loads(after)) if after else Place(0, 0, 0)
        for index in range(start.file, len(self._files)):
            file = self._files[index]
            begin = start if index == start.file else Place(index, 0, 0)
            try:
                yield from self._lines(file, begin) if file.suffix == _LINES else self._whole(file, begin)
            except FileNotFoundError as error:
                raise NotFound(f"{file.uri} has gone while the import ran: put it back, or start again") from error

    def _whole(self, file: TextFile, begin: Place) -> Iterator[Record]:
        if begin.line:
            return
        place = Place(begin.file, file.size, 1)
        if file.size > LARGEST_DOCUMENT:
            yield Record(file.name, file.uri, "", TOO_LARGE, place)
            return
        with file.filesystem.open(file.path, "rb") as stream:
            text, reason = self._decode(stream.read())
        yield Record(file.name, file.uri, text, reason or unusable_reason(text), place)

    def _lines(self, file: TextFile, begin: Place) -> Iterator[Record]:
        with file.filesystem.open(file.path, "rb") as stream:
            stream.seek(begin.offset)
            offset, number = begin.offset, begin.line
            for raw, size in read_lines(stream):
                offset, number = offset + size, number + 1
                if raw is not None and not raw.strip():
                    continue
                text, reason = self._read_line(raw, number)
                yield Record(f"{file.name}:{number}", file.uri, text, reason, Place(begin.file, offset, number))

    def _read_line(self, raw: bytes | None, number: int) -> tuple[str, str]:
        """The text in a line and an empty reason, or an empty text and the reason why it is unusable."""
        if raw is None:
            return "", TOO_LARGE
        line, reason = self._decode(raw)
        if reason:
            return "", reason
        try:
            value = json.loads(line.removeprefix("\ufeff") if number == 1 else line)
        except (ValueError, RecursionError):
            return "", NOT_JSON
        if not isinstance(value, dict):
            return "", NOT_JSON
        text = _follow(value, self._path)
        reason = unusable_reason(text)
        return ("", reason) if reason else (text, "")

    def _decode(self, raw: bytes) -> tuple[str, str]:
        try:
            return raw.decode(self._encoding), ""
        except UnicodeError:
            return "", f"broken {self._encoding.upper()}"


def read_lines(stream: Any) -> Iterator[tuple[bytes | None, int]]:
    """Yields each line and its bytes, line end included; None in place of a line that is too large to be held."""
    while line := stream.readline(LARGEST_DOCUMENT):
        size = len(line)
        if size < LARGEST_DOCUMENT or line.endswith(b"\n"):
            yield line, size
            continue
        while not line.endswith(b"\n") and (line := stream.readline(LARGEST_DOCUMENT)):
            size += len(line)
        yield None, size


def _follow(value: Any, parts: Sequence[str]) -> Any:
    for part in parts:
        if not isinstance(value, dict) or part not in value:
            return ...
        value = value[part]
    return value
