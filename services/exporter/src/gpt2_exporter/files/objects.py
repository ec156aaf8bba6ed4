"""Documents of JSON: one object a line (`.jsonl`), or an array of objects, objects in turn, or a list in them."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from gpt2_exporter.corpus import record
from gpt2_exporter.corpus.field_path import FieldPath
from gpt2_exporter.files.document import FileDocument, Place
from gpt2_exporter.files.rules import BYTE_ORDER_MARK, FileRules
from gpt2_exporter.files.streams import read_lines, skip

NOT_JSON = "not a JSON object"
DOCUMENTS_INSIDE = "text missing, but a list inside"
NO_DOCUMENTS = "nothing at documents_field"
_SEARCHED_LEVELS = 4
_BLOCK = 1 << 16
# Of a literal or an escape that may be cut off.
_LONGEST_WORD = len("-Infinity\\ud83d")
_WHITE_SPACE = re.compile("[ \t\r\n]*")
# Numbers are no texts; Python refuses the integers of thousands of digits that are sound JSON.
_DECODER = json.JSONDecoder(parse_int=float)


def read_json_lines(stream: Any, begin: Place, rules: FileRules) -> Iterator[FileDocument]:
    """Yields the text of the object in each line; blank lines are none."""
    skip(stream, begin.offset)
    field = rules.field
    place = begin
    for raw, size in read_lines(stream):
        place = Place(place.offset + size, place.number + 1)
        if raw is not None and rules.is_blank(raw, begins=place.number == 1):
            continue
        text, reason = ("", record.TOO_LARGE) if raw is None else _read_line(raw, place.number, field, rules)
        yield FileDocument(str(place.number), text, reason, place)


def _read_line(raw: bytes, number: int, field: FieldPath, rules: FileRules) -> tuple[str, str]:
    line, reason = rules.decode(raw, begins=number == 1)
    if reason:
        return "", reason
    try:
        value = _DECODER.decode(line)
    except (ValueError, RecursionError):
        return "", NOT_JSON
    return _text_of(value, field, rules)


def read_json(stream: Any, begin: Place, rules: FileRules) -> Iterator[FileDocument]:
    """Yields the text of each document, named by its number.

    Arrays of documents are not held. What comes after broken JSON, or after a value larger than the largest document,
    is not read: where the next one begins is not known.
    """
    path = rules.documents_field.split(".") if rules.documents_field else []
    read = _read_member if path else _read_object
    field, source = rules.field, _Values(stream, rules, path)
    number = 0
    try:
        for value in source:
            number += 1
            if number > begin.number:
                yield FileDocument(str(number), *read(value, field, rules), Place(source.read_bytes, number))
    except (OverflowError, RecursionError, ValueError) as error:
        reason = record.TOO_LARGE if isinstance(error, OverflowError) else NOT_JSON
        if number + 1 > begin.number:
            yield FileDocument(str(number + 1), "", reason, Place(source.read_bytes, number + 1))


class _Values:
    """The values at a path in a stream of JSON; those of an array are taken one by one, on the path too.

    Args:
        stream: The file.
        rules: Its encoding.
        path: Names of the fields that lead to the values; empty for the outermost ones.
    """

    def __init__(self, stream: Any, rules: FileRules, path: Sequence[str] = ()) -> None:
        self._stream = stream
        self._path = path
        self._decoder = rules.decoder()
        self._text = ""
        self._at = 0
        self._ended = False
        self.read_bytes = 0

    def __iter__(self) -> Iterator[Any]:
        """Yields the values; `...` where there is none at the path.

        Raises:
            ValueError: It is no JSON from here on; RecursionError when it is nested too deeply.
            OverflowError: A value is larger than a document may be.
        """
        while not self._text and not self._ended:
            self._read_on()
        self._at = int(self._text.startswith(BYTE_ORDER_MARK))
        while True:
            yield from self._follow(self._path)
            if not self._next_character():
                return

    def _follow(self, path: Sequence[str]) -> Iterator[Any]:
        """Yields what is at a path from the next value on."""
        begin = self._next_character()
        if begin == "[":
            for _ in self._members("]"):
                # Of arrays in an outermost array each is a value, which is none that can be read.
                yield from self._follow(path) if path else [self._value()]
        elif not path:
            yield self._value()
        elif begin == "{":
            yield from self._enter(path)
        else:
            self._value()
            yield ...

    def _enter(self, path: Sequence[str]) -> Iterator[Any]:
        """Yields what is at a path in the object that comes next."""
        found = False
        for _ in self._members("}"):
            name = self._value()
            if not isinstance(name, str) or self._next_character() != ":":
                raise ValueError("neither a name nor a colon after it")
            self._at += 1
            if name == path[0]:
                found = True
                yield from self._follow(path[1:])
            else:
                self._value()
        if not found:
            yield ...

    def _members(self, end: str) -> Iterator[None]:
        """Goes to each member of the array or object that comes next; it is the caller who takes it."""
        self._at += 1
        if self._next_character() == end:
            self._at += 1
            return
        while True:
            yield None
            separator = self._next_character()
            self._at += 1
            if separator == end:
                return
            if separator != ",":
                raise ValueError("neither a comma nor the end")

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


def _read_object(value: Any, field: FieldPath, rules: FileRules) -> tuple[str, str]:
    """As `_text_of`; says so where an object seems to hold documents rather than to be one."""
    text, reason = _text_of(value, field, rules)
    if reason == record.MISSING and _holds_documents(value, _SEARCHED_LEVELS):
        reason = DOCUMENTS_INSIDE
    return text, reason


def _holds_documents(value: Any, levels: int) -> bool:
    """Whether a list of objects or strings is in an object, or in one inside it."""
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict | str)
    inside = value.values() if isinstance(value, dict) and levels else ()
    return any(_holds_documents(member, levels - 1) for member in inside)


def _read_member(value: Any, field: FieldPath, rules: FileRules) -> tuple[str, str]:
    """As `_text_of`, of a member of the list that the request names: a string is a text itself."""
    if value is ...:
        return "", NO_DOCUMENTS
    if not isinstance(value, str):
        return _text_of(value, field, rules)
    reason = record.unusable_reason(value) or rules.check(value)
    return ("", reason) if reason else (value, "")


def _text_of(value: Any, field: FieldPath, rules: FileRules) -> tuple[str, str]:
    if not isinstance(value, dict):
        return "", NOT_JSON
    text, reason = field.read(value)
    reason = reason or rules.check(text)
    return ("", reason) if reason else (text, "")
