"""Documents of plain text: a whole file, its paragraphs, or its lines."""

from collections.abc import Iterator
from typing import Any

from gpt2_exporter.corpus import record
from gpt2_exporter.files.document import FileDocument, Place
from gpt2_exporter.files.rules import FileRules
from gpt2_exporter.files.streams import read_lines, skip


def read_whole(stream: Any, begin: Place, rules: FileRules) -> Iterator[FileDocument]:
    """Yields the file as one document."""
    if begin.number:
        return
    raw = stream.read(record.LARGEST_DOCUMENT + 1)
    after = Place(len(raw), 1)
    if len(raw) > record.LARGEST_DOCUMENT:
        yield FileDocument("", "", record.TOO_LARGE, after)
        return
    text, reason = rules.decode(raw)
    yield FileDocument("", text, reason or record.unusable_reason(text), after)


def read_text_lines(stream: Any, begin: Place, rules: FileRules) -> Iterator[FileDocument]:
    """Yields each line that is not blank, without its end."""
    skip(stream, begin.offset)
    place = begin
    for raw, size in read_lines(stream):
        place = Place(place.offset + size, place.number + 1)
        if raw is None:
            yield FileDocument(str(place.number), "", record.TOO_LARGE, place)
        elif raw.strip():
            text, reason = rules.decode(raw.removesuffix(b"\n").removesuffix(b"\r"), begins=place.number == 1)
            yield FileDocument(str(place.number), text, reason or record.unusable_reason(text), place)


def read_paragraphs(stream: Any, begin: Place, rules: FileRules) -> Iterator[FileDocument]:
    """Yields the lines between blank ones, joined as they stand, without the last line's end; named by the first."""
    skip(stream, begin.offset)
    place, first, size = begin, 0, 0
    lines: list[bytes] = []
    too_large = False
    for raw, line_size in read_lines(stream):
        place = Place(place.offset + line_size, place.number + 1)
        if raw is None or raw.strip():
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
