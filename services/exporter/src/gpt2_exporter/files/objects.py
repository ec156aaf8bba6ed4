"""Documents of JSON: one object a line (`.jsonl`), an array of objects, or one object (`.json`)."""

import json
from collections.abc import Iterator
from typing import Any

import ijson
from ijson.common import ObjectBuilder

from gpt2_exporter.corpus import record
from gpt2_exporter.files.document import FileDocument, Place
from gpt2_exporter.files.rules import FileRules
from gpt2_exporter.files.streams import read_lines, skip
from gpt2_exporter.mongo.text import follow

NOT_JSON = "not a JSON object"
_BLOCK = 1 << 14
_DEEPEST = 1000
_WHITE_SPACE = b" \t\r\n"


def read_json_lines(stream: Any, begin: Place, rules: FileRules) -> Iterator[FileDocument]:
    """Yields the text of the object in each line; blank lines are none."""
    skip(stream, begin.offset)
    path = rules.text_field.split(".")
    place = begin
    for raw, size in read_lines(stream):
        place = Place(place.offset + size, place.number + 1)
        if raw is not None and not raw.strip():
            continue
        text, reason = ("", record.TOO_LARGE) if raw is None else _read_line(raw, place.number, path, rules)
        yield FileDocument(str(place.number), text, reason, place)


def _read_line(raw: bytes, number: int, path: list[str], rules: FileRules) -> tuple[str, str]:
    line, reason = rules.decode(raw)
    if reason:
        return "", reason
    try:
        value = json.loads(line.removeprefix("\ufeff") if number == 1 else line)
    except (ValueError, RecursionError):
        return "", NOT_JSON
    return _text_of(value, path, rules)


def read_json(stream: Any, begin: Place, rules: FileRules) -> Iterator[FileDocument]:
    """Yields the text of each object of an array, named by its number, or of the one object that the file is.

    The array is not held. What comes after broken JSON, or after an object larger than the largest document, is not
    read: where the next one begins is not known.
    """
    path = rules.text_field.split(".")
    source = _Utf8(stream, rules)
    number = 0
    try:
        for value in _values(source):
            source.taken = 0
            number += 1
            if number > begin.number:
                yield FileDocument(str(number), *_text_of(value, path, rules), Place(source.read_bytes, number))
    except (ijson.JSONError, OverflowError, RecursionError, ValueError) as error:
        reason = record.TOO_LARGE if isinstance(error, OverflowError) else NOT_JSON
        if number + 1 > begin.number:
            yield FileDocument(str(number + 1), "", reason, Place(source.read_bytes, number + 1))


def _values(source: "_Utf8") -> Iterator[Any]:
    """Yields the values of the outermost array, or the one value that is none. Raises ValueError past a sane depth."""
    outermost = 1 if source.is_array() else 0
    depth = 0
    builder = ObjectBuilder()
    for event, value in ijson.basic_parse(source, use_float=True):
        opens, closes = event in ("start_map", "start_array"), event in ("end_map", "end_array")
        depth -= closes
        if depth < outermost:
            depth += opens
            continue
        if depth == outermost and not closes:
            builder = ObjectBuilder()
        builder.event(event, value)
        depth += opens
        if depth > _DEEPEST:
            raise ValueError("nested too deeply")
        if depth == outermost:
            yield builder.value


class _Utf8:
    """A stream in UTF-8, as the parser needs it, whatever the encoding; without a byte order mark.

    Args:
        stream: The file.
        rules: Its encoding.
    """

    def __init__(self, stream: Any, rules: FileRules) -> None:
        self._stream = stream
        self._rules = rules
        self._decoder = rules.decoder()
        self.read_bytes = 0
        self.taken = 0
        """Bytes taken since the last object."""
        self._waiting = self._next(first=True)

    def is_array(self) -> bool:
        """Whether the first character is that of an array."""
        while self._waiting and not self._waiting.lstrip(_WHITE_SPACE):
            self._waiting = self._next()
        return self._waiting.lstrip(_WHITE_SPACE).startswith(b"[")

    def read(self, size: int) -> bytes:
        """Up to so many bytes. Raises OverflowError when an object is larger than a document may be."""
        if not size:
            return b""
        block = (self._waiting or self._next())[:size]
        self._waiting = self._waiting[len(block) :] if self._waiting else b""
        self.taken += len(block)
        if self.taken > record.LARGEST_DOCUMENT:
            raise OverflowError
        return block

    def _next(self, first: bool = False) -> bytes:
        while True:
            raw = self._stream.read(_BLOCK)
            self.read_bytes += len(raw)
            text = self._rules.mark(self._decoder.decode(raw, final=not raw))
            if first:
                text = text.removeprefix("\ufeff")
            if text or not raw:
                return text.encode()


def _text_of(value: Any, path: list[str], rules: FileRules) -> tuple[str, str]:
    if not isinstance(value, dict):
        return "", NOT_JSON
    text = follow(value, path)
    reason = record.unusable_reason(text) or rules.check(text)
    return ("", reason) if reason else (text, "")
