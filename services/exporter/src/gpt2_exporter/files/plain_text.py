"""Reads documents of plain text: a whole file, its paragraphs, its lines, or the parts between separators."""

from collections.abc import Iterator
from typing import Any

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_contracts.tokenizer import END_TOKEN
from gpt2_exporter.files.document import FileDocument, Place
from gpt2_exporter.files.rules import BYTE_ORDER_MARK, FileRules
from gpt2_exporter.files.streams import read_lines, skip
from gpt2_exporter.rejects import reasons

_BLOCK = 1 << 20


def read_whole(stream: Any, begin: Place, rules: FileRules) -> Iterator[FileDocument]:
    """Yields the file as one document.

    A file with markers between documents is unusable, unless `text_unit` is TEXT_UNIT_FILE.
    """
    if begin.number:
        return
    raw = stream.read(reasons.MAX_DOCUMENT_BYTES + 1)
    after = Place(len(raw), 1)
    if len(raw) > reasons.MAX_DOCUMENT_BYTES:
        yield FileDocument("", "", reasons.TOO_LARGE, after)
        return
    text, reason = rules.decode(raw)
    reason = reason or reasons.unusable_reason(text)
    if rules.text_unit != pb.TEXT_UNIT_FILE and END_TOKEN in text:
        reason = reasons.HAS_MARKERS
    yield FileDocument("", "" if reason else text, reason, after)


def read_text_lines(stream: Any, begin: Place, rules: FileRules) -> Iterator[FileDocument]:
    """Yields each line that is not blank, without its line end, named by its number."""
    skip(stream, begin.offset)
    place = begin
    for raw, size in read_lines(stream):
        place = Place(place.offset + size, place.number + 1)
        begins = place.number == 1
        if raw is None:
            yield FileDocument(str(place.number), "", reasons.TOO_LARGE, place)
        elif not rules.is_blank(raw, begins=begins):
            text, reason = rules.decode(raw.removesuffix(b"\n").removesuffix(b"\r"), begins=begins)
            yield FileDocument(str(place.number), text, reason or reasons.unusable_reason(text), place)


def read_paragraphs(stream: Any, begin: Place, rules: FileRules) -> Iterator[FileDocument]:
    """Yields the lines between blank ones, joined, without the last line end; named by the number of the first line."""
    skip(stream, begin.offset)
    place, first, size = begin, 0, 0
    lines: list[bytes] = []
    too_large = False
    for raw, line_size in read_lines(stream):
        place = Place(place.offset + line_size, place.number + 1)
        if raw is None or not rules.is_blank(raw, begins=place.number == 1):
            first = first or place.number
            size += line_size
            too_large = too_large or raw is None or size > reasons.MAX_DOCUMENT_BYTES
            if too_large or raw is None:
                lines.clear()
            else:
                lines.append(raw)
        elif first:
            yield _paragraph(lines, too_large, first, place, rules)
            lines, first, size, too_large = [], 0, 0, False
    if first:
        yield _paragraph(lines, too_large, first, place, rules)


def _paragraph(lines: list[bytes], too_large: bool, first: int, after: Place, rules: FileRules) -> FileDocument:
    if too_large:
        return FileDocument(str(first), "", reasons.TOO_LARGE, after)
    raw = b"".join(lines).removesuffix(b"\n").removesuffix(b"\r")
    text, reason = rules.decode(raw, begins=first == 1)
    return FileDocument(str(first), text, reason or reasons.unusable_reason(text), after)


def read_separated(stream: Any, begin: Place, rules: FileRules) -> Iterator[FileDocument]:
    """Yields the parts between separators, without line breaks around them, named by number; skips blank parts."""
    number = 0
    for text, too_large, read in _parts(stream, rules):
        if not too_large and not text.strip():
            continue
        number += 1
        if number > begin.number:
            reason = reasons.TOO_LARGE if too_large else rules.check(text)
            yield FileDocument(str(number), "" if reason else text.strip("\r\n"), reason, Place(read, number))


def _parts(stream: Any, rules: FileRules) -> Iterator[tuple[str, bool, int]]:
    """Yields the text between separators, whether it is too large for memory, and the bytes read so far."""
    separator, decoder = rules.document_separator, rules.decoder()
    # Characters at the end of the text in which a separator can have begun.
    overlap = len(separator) - 1
    waiting, read, too_large, begins, ended = "", 0, False, True, False
    while not ended:
        # At least as much again, so that long documents take linear time.
        raw = stream.read(max(_BLOCK, len(waiting)))
        read, ended = read + len(raw), not raw
        new = decoder.decode(raw, final=ended)
        if begins and new:
            begins, new = False, new.removeprefix(BYTE_ORDER_MARK)
        searched = max(0, len(waiting) - overlap)
        waiting += new
        begin = 0
        while (end := waiting.find(separator, max(searched, begin))) >= 0:
            yield waiting[begin:end], too_large, read
            begin, too_large = end + len(separator), False
        waiting = waiting[begin:]
        if len(waiting) > reasons.MAX_DOCUMENT_BYTES:
            waiting, too_large = waiting[len(waiting) - overlap :], True
    yield waiting, too_large, read
