"""Documents of tables: a column of a `.csv` or `.parquet` file, one document a row."""

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gpt2_common.errors import DataLoss, FailedPrecondition
from gpt2_exporter.corpus import record
from gpt2_exporter.files.document import START, FileDocument, Place
from gpt2_exporter.files.rules import FileRules
from gpt2_exporter.files.streams import read_lines, skip

BROKEN_ROW = "broken CSV row"
_ROWS_AT_ONCE = 1000
_BYTES_AT_ONCE = 4 << 20
_READ_BYTES = 1 << 20


class _Lines:
    """The lines of a file for the parser, which takes no more than the row needs; they say how far it is.

    A row that goes on past the largest document, as one with a quote that never ends does, is ended.
    """

    def __init__(self, stream: Any, begin: Place, rules: FileRules) -> None:
        self._lines = read_lines(stream)
        self._rules = rules
        self._first = begin == START
        self.offset = begin.offset
        self.row_bytes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw, size = next(self._lines)
        self.offset += size
        self.row_bytes += size
        if raw is None or self.row_bytes > record.LARGEST_DOCUMENT:
            raise OverflowError
        line = self._rules.decode_part(raw, begins=self._first)
        if self._first:
            self._first, line = False, line.removeprefix("\ufeff")
        return line


def read_csv(stream: Any, begin: Place, rules: FileRules, uri: str) -> Iterator[FileDocument]:
    """Yields the column of each row, named by the number of the row after the header.

    Raises:
        FailedPrecondition: The header has no such column, or is no row of CSV.
    """
    # The parser's own limit is for all of a process: this one only reads files. A row is limited by its lines.
    csv.field_size_limit(sys.maxsize)
    lines = _Lines(stream, START, rules)
    header = _header(lines, uri)
    if rules.text_field not in header:
        raise FailedPrecondition(
            f"{uri} has no column {rules.text_field}; its first row names {', '.join(header) or 'none'}: set text_field"
        )
    _require_once(header, rules.text_field, uri)
    column = header.index(rules.text_field)
    place = Place(lines.offset, 0)
    if begin.number:
        skip(stream, begin.offset - lines.offset)
        place = begin
        lines = _Lines(stream, begin, rules)
    rows = csv.reader(lines, strict=True)
    while True:
        lines.row_bytes = 0
        reason, row = "", []
        try:
            row = next(rows)
        except StopIteration:
            return
        except OverflowError:
            reason = record.TOO_LARGE
        except csv.Error:
            reason = BROKEN_ROW
        if reason:
            # The parser is in the middle of a row: another one begins with the next line.
            rows = csv.reader(lines, strict=True)
        elif not row:
            continue
        elif any(row[len(header) :]):
            # As where a text holds a comma and has no quotes: which part belongs to which column is not known.
            reason = BROKEN_ROW
        place = Place(lines.offset, place.number + 1)
        text = row[column] if column < len(row) else ...
        reason = reason or record.unusable_reason(text) or rules.check(str(text))
        yield FileDocument(str(place.number), "" if reason else str(text), reason, place)


def _header(lines: _Lines, uri: str) -> list[str]:
    """The first row that is not blank."""
    try:
        return next((row for row in csv.reader(lines, strict=True) if row), [])
    except (csv.Error, OverflowError) as error:
        raise FailedPrecondition(
            f"{uri} does not begin with a row of column names ({str(error) or record.TOO_LARGE}): "
            "write it as CSV with quotes as in RFC 4180 and lines that end in LF or CRLF"
        ) from error


def read_parquet(stream: Any, begin: Place, rules: FileRules, uri: str) -> Iterator[FileDocument]:
    """Yields the column of each row, named by the number of the row; strings of Parquet are in UTF-8.

    Raises:
        FailedPrecondition: The file has no such column, or it holds no strings.
        DataLoss: It is no Parquet.
    """
    try:
        with pq.ParquetFile(stream, buffer_size=_READ_BYTES, pre_buffer=False) as file:
            kind = _column_type(file, rules.text_field, uri)
            rules, rows = replace(rules, encoding="utf-8"), 0
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).num_rows
                rows += size
                if rows > begin.number:
                    number = rows - size
                    batch_rows = _rows_at_once(file.metadata.row_group(group), rules.text_field)
                    for batch in file.iter_batches(batch_rows, row_groups=[group], columns=[rules.text_field]):
                        yield from _rows(batch.column(0).cast(kind), number, begin.number, rules)
                        number += len(batch)
    except pa.ArrowInvalid as error:
        raise DataLoss(f"{uri} is no Parquet file, or a damaged one ({error}): replace it", uri=uri) from error


def _column_type(file: pq.ParquetFile, column: str, uri: str) -> pa.DataType:
    """The type to read the column as: bytes, as strings may be broken."""
    schema = file.schema_arrow
    if column not in schema.names:
        raise FailedPrecondition(f"{uri} has no column {column}; it has {', '.join(schema.names)}: set text_field")
    _require_once(schema.names, column, uri)
    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    # A column without a single value can have the type of null.
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind):
        return pa.large_binary()
    raise FailedPrecondition(f"{uri}: the column {column} holds {kind}, not strings: set text_field to one that does")


def _require_once(names: Sequence[str], column: str, uri: str) -> None:
    """Raises FailedPrecondition when several columns have the name."""
    if names.count(column) > 1:
        raise FailedPrecondition(f"{uri} has {names.count(column)} columns {column}: rename all but one")


def _rows_at_once(group: pq.RowGroupMetaData, column: str) -> int:
    """Rows to decode together: fewer where texts are long, so that memory does not grow with them."""
    columns = (group.column(index) for index in range(group.num_columns))
    size = sum(part.total_uncompressed_size for part in columns if part.path_in_schema == column)
    rows: int = _BYTES_AT_ONCE * group.num_rows // max(1, size)
    return max(1, min(_ROWS_AT_ONCE, rows))


def _rows(values: pa.Array, first: int, begin: int, rules: FileRules) -> Iterator[FileDocument]:
    for number, raw in enumerate(values.to_pylist(), first + 1):
        if number <= begin:
            continue
        after = Place(number, number)
        if raw is None:
            yield FileDocument(str(number), "", record.NULL, after)
            continue
        text, reason = rules.decode(raw)
        reason = reason or record.unusable_reason(text)
        yield FileDocument(str(number), "" if reason else text, reason, after)
