"""Documents of JSON: one object a line (`.jsonl`), an array of objects, or objects one after another (`.json`)."""

import json
import re
from collections.abc import Iterator
from typing import Any

from gpt2_exporter.corpus import record
from gpt2_exporter.corpus.field_path import FieldPath
from gpt2_exporter.files.document import FileDocument, Place
from gpt2_exporter.files.rules import FileRules
from gpt2_exporter.files.streams import read_lines, skip

NOT_JSON = "not a JSON object"
_BLOCK = 1 << 16
# Of a literal or an escape that may be cut off.
_LONGEST_WORD = len("-Infinity\\ud83d")
_WHITE_SPACE = re.compile("[ \t\r\n]*")
# Numbers are no texts; Python refuses the integers of thousands of digits that are sound JSON.
_DECODER = json.JSONDecoder(parse_int=float)


def read_json_lines(stream: Any, begin: Place, rules: FileRules) -> Iterator[FileDocument]:
    """Yields the text of the object in each line; blank lines are none."""
    skip(stream, begin.offset)
    path = FieldPath.of(rules.text_field)
    place = begin
    for raw, size in read_lines(stream):
        place = Place(place.offset + size, place.number + 1)
        if raw is not None and not raw.strip():
            continue
        text, reason = ("", record.TOO_LARGE) if raw is None else _read_line(raw, place.number, path, rules)
        yield FileDocument(str(place.number), text, reason, place)


def _read_line(raw: bytes, number: int, path: FieldPath, rules: FileRules) -> tuple[str, str]:
    line, reason = rules.decode(raw, begins=number == 1)
    if reason:
        return "", reason
    try:
        value = _DECODER.decode(line.removeprefix("\ufeff") if number == 1 else line)
    except (ValueError, RecursionError):
        return "", NOT_JSON
    return _text_of(value, path, rules)


def read_json(stream: Any, begin: Place, rules: FileRules) -> Iterator[FileDocument]:
    """Yields the text of each object of an array, named by its number, or of the objects that follow one another.

    The array is not held. What comes after broken JSON, or after an object larger than the largest document, is not
    read: where the next one begins is not known.
    """
    path = FieldPath.of(rules.text_field)
    source = _Values(stream, rules)
    number = 0
    try:
        for value in source:
            number += 1
            if number > begin.number:
                yield FileDocument(str(number), *_text_of(value, path, rules), Place(source.read_bytes, number))
    except (OverflowError, RecursionError, ValueError) as error:
        reason = record.TOO_LARGE if isinstance(error, OverflowError) else NOT_JSON
        if number + 1 > begin.number:
            yield FileDocument(str(number + 1), "", reason, Place(source.read_bytes, number + 1))


class _Values:
    """The values of a stream of JSON; those of an outermost array are taken one by one.

    Args:
        stream: The file.
        rules: Its encoding.
    """

    def __init__(self, stream: Any, rules: FileRules) -> None:
        self._stream = stream
        self._decoder = rules.decoder()
        self._text = ""
        self._at = 0
        self._ended = False
        self.read_bytes = 0

    def __iter__(self) -> Iterator[Any]:
        """Yields the values.

        Raises:
            ValueError: It is no JSON from here on; RecursionError when it is nested too deeply.
            OverflowError: A value is larger than a document may be.
        """
        self._read_on()
        self._at = int(self._text.startswith("\ufeff"))
        while True:
            if self._next_character() == "[":
                yield from self._items()
            else:
                yield self._value()
            if not self._next_character():
                return

    def _items(self) -> Iterator[Any]:
        self._at += 1
        if self._next_character() == "]":
            self._at += 1
            return
        while True:
            yield self._value()
            separator = self._next_character()
            self._at += 1
            if separator == "]":
                return
            if separator != ",":
                raise ValueError("neither a comma nor the end of the array")

    def _next_character(self) -> str:
        """The next one that is no white space, which is not taken; empty at the end."""
        while True:
            self._at = _white_space_end(self._text, self._at)
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._read_on()

    def _value(self) -> Any:
        self._next_character()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended or not _may_go_on(error, len(self._text)):
                    raise
            else:
                # A number at the end of what is read may have further digits.
                if end < len(self._text) or self._ended or not isinstance(value, float):
                    self._at = end
                    return value
            self._read_on()

    def _read_on(self) -> None:
        """Keeps what is not taken yet, and reads at least as much again, so that long values cost linear time."""
        self._text = self._text[self._at :]
        self._at = 0
        if len(self._text) > record.LARGEST_DOCUMENT:
            raise OverflowError
        room = record.LARGEST_DOCUMENT + 1 - len(self._text)
        raw = self._stream.read(max(_BLOCK, min(len(self._text), room)))
        self.read_bytes += len(raw)
        self._ended = not raw
        self._text += self._decoder.decode(raw, final=not raw)


def _white_space_end(text: str, begin: int) -> int:
    found = _WHITE_SPACE.match(text, begin)
    return found.end() if found else begin


def _may_go_on(error: json.JSONDecodeError, end: int) -> bool:
    """Whether text that goes on could make the value a sound one."""
    return error.msg.startswith("Unterminated string") or error.pos >= end - _LONGEST_WORD


def _text_of(value: Any, path: FieldPath, rules: FileRules) -> tuple[str, str]:
    if not isinstance(value, dict):
        return "", NOT_JSON
    text, reason = path.read(value)
    reason = reason or rules.check(text)
    return ("", reason) if reason else (text, "")
