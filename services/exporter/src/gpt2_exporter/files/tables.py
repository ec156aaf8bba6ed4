"""Reads documents of tables: a column of a `.csv`, `.tsv` or `.parquet` file, one document per row."""

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gpt2_common.errors import DataLoss, FailedPrecondition
from gpt2_exporter.corpus.field_path import FieldPath
from gpt2_exporter.files.csv_header import not_csv, require_once, text_column
from gpt2_exporter.files.document import START, FileDocument, Place
from gpt2_exporter.files.rules import FileRules
from gpt2_exporter.files.streams import read_lines, skip
from gpt2_exporter.rejects import reasons

_MAX_BATCH_ROWS = 1000
_MAX_BATCH_BYTES = 4 << 20
_READ_BYTES = 1 << 20


class _Lines:
    """The lines of a file for the CSV parser, which consumes only those of one row; counts the bytes consumed.

    Raises OverflowError when a row is larger than the largest document, such as after a quote that is never closed.
    """

    def __init__(self, stream: Any, begin: Place, rules: FileRules) -> None:
        self._lines = read_lines(stream)
        self._rules = rules
        self._begins = begin == START
        self.offset = begin.offset
        self.row_bytes = 0
        self.last = ""
        """The line consumed last."""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw, size = next(self._lines)
        self.offset += size
        self.row_bytes += size
        if raw is None or self.row_bytes > reasons.MAX_DOCUMENT_BYTES:
            raise OverflowError
        self.last, self._begins = self._rules.decode_part(raw, begins=self._begins), False
        return self.last


def read_csv(stream: Any, begin: Place, rules: FileRules, uri: str, delimiter: str) -> Iterator[FileDocument]:
    """Yields the column of each row (RFC 4180) after the header, named by the number of the row.

    Args:
        stream: The file.
        begin: Position to resume at.
        rules: How to read it.
        uri: Its URI, for errors.
        delimiter: Delimiter of columns in its format, where the rules have none.

    Raises:
        FailedPrecondition: The first row does not have the column, or is not CSV.
    """
    # The parser's own limit applies to the whole process. `_Lines` limits rows instead.
    csv.field_size_limit(sys.maxsize)
    delimiter = rules.csv_delimiter or delimiter
    lines = _Lines(stream, START, rules)
    try:
        first = next((row for row in csv.reader(lines, delimiter=delimiter, strict=True) if row), [])
    except (csv.Error, OverflowError) as error:
        raise not_csv(error, lines.last, delimiter, rules, uri) from error
    column = text_column(first, lines.last, delimiter, rules, uri)
    place = Place(lines.offset, 0)
    if begin.number:
        skip(stream, begin.offset - lines.offset)
        place, lines = begin, _Lines(stream, begin, rules)
    elif first and not rules.csv_header:
        place = Place(lines.offset, 1)
        yield _row_document(first, column, len(first), rules, place)
    for row, reason in _csv_rows(lines, delimiter):
        place = Place(lines.offset, place.number + 1)
        if reason:
            yield FileDocument(str(place.number), "", reason, place)
        else:
            yield _row_document(row, column, len(first), rules, place)


def _csv_rows(lines: _Lines, delimiter: str) -> Iterator[tuple[list[str], str]]:
    """Yields each row that is not blank, or an empty one and the reason why it is unusable."""
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.row_bytes = 0
        try:
            row = next(rows)
        except StopIteration:
            return
        except (OverflowError, csv.Error) as error:
            yield [], reasons.TOO_LARGE if isinstance(error, OverflowError) else reasons.BROKEN_ROW
            # The parser is inside a row: a new parser begins at the next line.
            rows = csv.reader(lines, delimiter=delimiter, strict=True)
        else:
            if row:
                yield row, ""


def _row_document(row: Sequence[str], column: int, columns: int, rules: FileRules, place: Place) -> FileDocument:
    text = row[column] if column < len(row) else ...
    # A text with an unquoted delimiter gives more columns: which part belongs to which is unknown.
    reason = reasons.BROKEN_ROW if any(row[columns:]) else reasons.unusable_reason(text) or rules.check(str(text))
    return FileDocument(str(place.number), "" if reason else str(text), reason, place)


def read_parquet(stream: Any, begin: Place, rules: FileRules, uri: str) -> Iterator[FileDocument]:
    """Yields the column of each row, named by the number of the row; strings in Parquet are UTF-8.

    Raises:
        FailedPrecondition: The file has no such column, or the column does not have strings.
        DataLoss: It is not a Parquet file.
    """
    try:
        with pq.ParquetFile(stream, buffer_size=_READ_BYTES, pre_buffer=False) as file:
            kind = _column_type(file, rules, uri)
            rules, rows = replace(rules, encoding="utf-8"), 0
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                rows += size
                if rows > begin.number:
                    number = rows - size
                    batch_rows = _batch_rows(file.metadata.row_group(group), rules.text_field)
                    for batch in file.iter_batches(batch_rows, row_groups=[group], columns=[rules.text_field]):
                        yield from _rows(batch.column(0).cast(kind), number, begin.number, rules)
                        number += len(batch)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise DataLoss(f"{uri} is not a Parquet file, or damaged ({error}): replace it", uri=uri) from error


def _column_type(file: pq.ParquetFile, rules: FileRules, uri: str) -> pa.DataType:
    """Returns the type to read the column as: bytes, as strings may be invalid, or lists of them."""
    schema, column = file.schema_arrow, rules.text_field
    if column not in schema.names:
        raise FailedPrecondition(f"{uri} has no column {column}; it has {', '.join(schema.names)}: set text_field")
    require_once(schema.names, column, uri)
    found = schema.field(column).type
    kind = _bytes_type(found)
    if kind is None:
        raise FailedPrecondition(
            f"{uri}: the column {column} has {found}, not strings: set text_field to one that does"
        )
    if _is_list(kind) and rules.list_separator is None:
        raise FailedPrecondition(
            f"{uri}: the column {column} has lists of strings: set list_separator to the separator of their texts"
        )
    return kind


def _bytes_type(kind: pa.DataType) -> pa.DataType | None:
    """Returns the type of bytes for a type of strings, or of lists of them; None for any other type."""
    if _is_list(kind):
        member = _bytes_type(kind.value_type)
        return None if member is None else pa.large_list(member)
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    # A column without any value can have the type null.
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind):
        return pa.large_binary()
    return None


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _batch_rows(group: pq.RowGroupMetaData, column: str) -> int:
    """Returns the rows to decode at once: fewer where texts are long, so that memory stays flat."""
    columns = (group.column(index) for index in range(group.num_columns))
    size = sum(part.total_uncompressed_size for part in columns if f"{part.path_in_schema}.".startswith(f"{column}."))
    rows: int = _MAX_BATCH_BYTES * group.num_rows // max(1, size)
    return max(1, min(_MAX_BATCH_ROWS, rows))


def _rows(values: pa.Array, first: int, begin: int, rules: FileRules) -> Iterator[FileDocument]:
    field = FieldPath((), rules.list_separator)
    for number, raw in enumerate(values.to_pylist(), first + 1):
        if number <= begin:
            continue
        text, reason = field.read(_decoded(raw, rules))
        reason = reason or rules.check(text)
        yield FileDocument(str(number), "" if reason else text, reason, Place(number, number))


def _decoded(raw: Any, rules: FileRules) -> Any:
    """Returns a value of a column with bytes decoded; invalid bytes become lone surrogates."""
    if isinstance(raw, list):
        return [_decoded(member, rules) for member in raw]
    return None if raw is None else rules.decode_part(raw, begins=False)
