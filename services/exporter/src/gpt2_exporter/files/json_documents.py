"""Reads JSON documents: an object per line (`.jsonl`), an array of objects, consecutive objects, or lists in them."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from gpt2_exporter.corpus.field_path import FieldPath
from gpt2_exporter.files.document import FileDocument, Place
from gpt2_exporter.files.rules import BYTE_ORDER_MARK, FileRules
from gpt2_exporter.files.streams import read_lines, skip
from gpt2_exporter.rejects import reasons

_SEARCHED_LEVELS = 4
_BLOCK = 1 << 16
# Characters of the longest literal or escape, which the end of a block can cut.
_MAX_WORD_CHARACTERS = len("-Infinity\\ud83d")
_WHITE_SPACE = re.compile("[ \t\r\n]*")
# Numbers are not texts; Python refuses integers of thousands of digits, which are valid JSON.
_DECODER = json.JSONDecoder(parse_int=float)


def read_json_lines(stream: Any, begin: Place, rules: FileRules) -> Iterator[FileDocument]:
    """Yields the text of the object in each line, named by the line number; skips blank lines."""
    skip(stream, begin.offset)
    field = rules.field
    place = begin
    for raw, size in read_lines(stream):
        place = Place(place.offset + size, place.number + 1)
        if raw is not None and rules.is_blank(raw, begins=place.number == 1):
            continue
        text, reason = ("", reasons.TOO_LARGE) if raw is None else _read_line(raw, place.number, field, rules)
        yield FileDocument(str(place.number), text, reason, place)


def _read_line(raw: bytes, number: int, field: FieldPath, rules: FileRules) -> tuple[str, str]:
    line, reason = rules.decode(raw, begins=number == 1)
    if reason:
        return "", reason
    try:
        value = _DECODER.decode(line)
    except (ValueError, RecursionError):
        return "", reasons.NOT_JSON
    return _text_of(value, field, rules)


def read_json(stream: Any, begin: Place, rules: FileRules) -> Iterator[FileDocument]:
    """Yields the text of each document, named by its number.

    Does not hold arrays of documents in memory. Stops at invalid JSON, and at a value larger than the largest document:
    where the next document begins is unknown.
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
        reason = reasons.TOO_LARGE if isinstance(error, OverflowError) else reasons.NOT_JSON
        if number + 1 > begin.number:
            yield FileDocument(str(number + 1), "", reason, Place(source.read_bytes, number + 1))


class _Values:
    """Iterates over the values at a path in a stream of JSON, and over the members of arrays, also on the path.

    Args:
        stream: The file.
        rules: Its encoding.
        path: Names of the fields from the outermost one; empty for the outermost values.
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
            ValueError: The JSON is invalid from here on.
            RecursionError: It is nested too deeply.
            OverflowError: A value is larger than a document may be.
        """
        while not self._text and not self._ended:
            self._read_more()
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
                # Arrays in an outermost array are values, though not usable ones.
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
        """Moves to each member of the next array or object; the caller consumes it."""
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
        """Returns the next character that is not white space, without consuming it; empty at the end."""
        while True:
            self._at = _white_space_end(self._text, self._at)
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._read_more()

    def _value(self) -> Any:
        self._next_character()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._ended or not _is_incomplete(error, len(self._text)):
                    raise
            else:
                # A number at the end of the text so far may have further digits.
                if end < len(self._text) or self._ended or not isinstance(value, float):
                    self._at = end
                    return value
            self._read_more()

    def _read_more(self) -> None:
        """Reads at least as much as is not consumed yet, so that long values take linear time."""
        self._text = self._text[self._at :]
        self._at = 0
        if len(self._text) > reasons.MAX_DOCUMENT_BYTES:
            raise OverflowError
        room = reasons.MAX_DOCUMENT_BYTES + 1 - len(self._text)
        raw = self._stream.read(max(_BLOCK, min(len(self._text), room)))
        self.read_bytes += len(raw)
        self._ended = not raw
        self._text += self._decoder.decode(raw, final=not raw)


def _white_space_end(text: str, begin: int) -> int:
    found = _WHITE_SPACE.match(text, begin)
    return found.end() if found else begin


def _is_incomplete(error: json.JSONDecodeError, end: int) -> bool:
    """Whether more text could make the value valid."""
    return error.msg.startswith("Unterminated string") or error.pos >= end - _MAX_WORD_CHARACTERS


def _read_object(value: Any, field: FieldPath, rules: FileRules) -> tuple[str, str]:
    """As `_text_of`, with a separate reason for an object that seems to contain documents."""
    text, reason = _text_of(value, field, rules)
    if reason == reasons.MISSING and _holds_documents(value, _SEARCHED_LEVELS):
        reason = reasons.DOCUMENTS_INSIDE
    return text, reason


def _holds_documents(value: Any, levels: int) -> bool:
    """Whether an object, or one in it, has a list of objects or strings."""
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict | str)
    inside = value.values() if isinstance(value, dict) and levels else ()
    return any(_holds_documents(member, levels - 1) for member in inside)


def _read_member(value: Any, field: FieldPath, rules: FileRules) -> tuple[str, str]:
    """As `_text_of`, for a member of the list at `documents_field`: a string is itself a text."""
    if value is ...:
        return "", reasons.NO_DOCUMENTS
    if not isinstance(value, str):
        return _text_of(value, field, rules)
    reason = reasons.unusable_reason(value) or rules.check(value)
    return ("", reason) if reason else (value, "")


def _text_of(value: Any, field: FieldPath, rules: FileRules) -> tuple[str, str]:
    if not isinstance(value, dict):
        return "", reasons.NOT_JSON
    text, reason = field.read(value)
    reason = reason or rules.check(text)
    return ("", reason) if reason else (text, "")
