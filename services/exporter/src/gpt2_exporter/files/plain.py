"""Documents of plain text: a whole file, its paragraphs, its lines, or what stands between separators."""

from collections.abc import Iterator
from typing import Any

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_exporter.corpus import record
from gpt2_exporter.files.document import FileDocument, Place
from gpt2_exporter.files.rules import BYTE_ORDER_MARK, FileRules
from gpt2_exporter.files.streams import read_lines, skip

END_OF_TEXT = "<|endoftext|>"
HAS_MARKERS = f"{END_OF_TEXT} inside"
_BLOCK = 1 << 20


def read_whole(stream: Any, begin: Place, rules: FileRules) -> Iterator[FileDocument]:
    """Yields the file as one document.

    One with markers between documents is unusable unless the request asks for whole files.
    """
    if begin.number:
        return
    raw = stream.read(record.LARGEST_DOCUMENT + 1)
    after = Place(len(raw), 1)
    if len(raw) > record.LARGEST_DOCUMENT:
        yield FileDocument("", "", record.TOO_LARGE, after)
        return
    text, reason = rules.decode(raw)
    reason = reason or record.unusable_reason(text)
    if rules.text_unit != pb.TEXT_UNIT_FILE and END_OF_TEXT in text:
        reason = HAS_MARKERS
    yield FileDocument("", "" if reason else text, reason, after)


def read_text_lines(stream: Any, begin: Place, rules: FileRules) -> Iterator[FileDocument]:
    """Yields each line that is not blank, without its end."""
    skip(stream, begin.offset)
    place = begin
    for raw, size in read_lines(stream):
        place = Place(place.offset + size, place.number + 1)
        begins = place.number == 1
        if raw is None:
            yield FileDocument(str(place.number), "", record.TOO_LARGE, place)
        elif not rules.is_blank(raw, begins=begins):
            text, reason = rules.decode(raw.removesuffix(b"\n").removesuffix(b"\r"), begins=begins)
            yield FileDocument(str(place.number), text, reason or record.unusable_reason(text), place)


def read_paragraphs(stream: Any, begin: Place, rules: FileRules) -> Iterator[FileDocument]:
    """Yields the lines between blank ones, joined as they stand, without the last line's end; named by the first."""
    skip(stream, begin.offset)
    place, first, size = begin, 0, 0
    lines: list[bytes] = []
    too_large = False
    for raw, line_size in read_lines(stream):
        place = Place(place.offset + line_size, place.number + 1)
        if raw is None or not rules.is_blank(raw, begins=place.number == 1):
            first = first or place.number
            size += line_size
            too_large = too_large or raw is None or size > record.LARGEST_DOCUMENT
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
        return FileDocument(str(first), "", record.TOO_LARGE, after)
    raw = b"".join(lines).removesuffix(b"\n").removesuffix(b"\r")
    text, reason = rules.decode(raw, begins=first == 1)
    return FileDocument(str(first), text, reason or record.unusable_reason(text), after)


def read_separated(stream: Any, begin: Place, rules: FileRules) -> Iterator[FileDocument]:
    """Yields what stands between separators, without the line breaks around it, named by its number.

    What is blank is no document.
    """
    number = 0
    for text, too_large, read in _parts(stream, rules):
        if not too_large and not text.strip():
            continue
        number += 1
        if number > begin.number:
            reason = record.TOO_LARGE if too_large else rules.check(text)
            yield FileDocument(str(number), "" if reason else text.strip("\r\n"), reason, Place(read, number))


def _parts(stream: Any, rules: FileRules) -> Iterator[tuple[str, bool, int]]:
    """Yields the text between separators, whether it is too large to be held, and the bytes read so far."""
    separator, decoder = rules.document_separator, rules.decoder()
    # The end of text in which a separator can have begun.
    overlap = len(separator) - 1
    waiting, read, too_large, begins, ended = "", 0, False, True, False
    while not ended:
        # At least as much again, so that long documents cost linear time.
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
        if len(waiting) > record.LARGEST_DOCUMENT:
            waiting, too_large = waiting[len(waiting) - overlap :], True
    yield waiting, too_large, read
