"""Finds the column of the text by the first row of a CSV file, and explains which option to set where it fails."""

import csv
from collections.abc import Sequence

from gpt2_common.errors import FailedPrecondition
from gpt2_exporter.corpus.field_path import DEFAULT_TEXT_FIELD
from gpt2_exporter.files.rules import FileRules
from gpt2_exporter.rejects import reasons

_DELIMITERS = ",;\t|"
_MAX_SHOWN_NAMES = 20
_MAX_SHOWN_CHARACTERS = 60
_ENCODING_ADVICE = "set encoding to that of the file, such as cp1252"
_ADVICE = "write it as CSV with quotes as in RFC 4180 and lines that end in LF or CRLF"


def text_column(first: Sequence[str], line: str, delimiter: str, rules: FileRules, uri: str) -> int:
    """Returns the index of the text's column.

    Args:
        first: The first row that is not blank; empty where there is none.
        line: The last line of that row, unparsed.
        delimiter: The delimiter of columns.
        rules: The rules of the request.
        uri: The URI of the file, for errors.

    Raises:
        FailedPrecondition: There is no such column, or there are several.
    """
    if not rules.csv_header:
        return _numbered_column(len(first), line, delimiter, rules, uri)
    if rules.text_field in first:
        require_once(first, rules.text_field, uri)
        return first.index(rules.text_field)
    delimiter_advice = _delimiter_advice(line, delimiter, rules.text_field, alone=len(first) == 1)
    names, field_advice = _shown(first), "set text_field to one of them"
    if rules.check(line):
        advice = filter(None, (_ENCODING_ADVICE, delimiter_advice, field_advice))
        raise FailedPrecondition(
            f"{uri}: the first row is not {rules.encoding_name}, and has no column {rules.text_field}; it names "
            f"{names}: {', and '.join(advice)}"
        )
    header_advice = "csv_header to false where the first row is a document"
    raise FailedPrecondition(
        f"{uri} has no column {rules.text_field}; its first row names {names}: "
        f"{', or '.join(filter(None, (delimiter_advice, field_advice, header_advice)))}"
    )


def not_csv(error: Exception, line: str, delimiter: str, rules: FileRules, uri: str) -> FailedPrecondition:
    """Returns the error for a file whose first row is not CSV; arguments as in `text_column`."""
    if isinstance(error, OverflowError):
        why, advice = reasons.TOO_LARGE, f"a row has at most {reasons.MAX_DOCUMENT_BYTES:,} bytes: {_ADVICE}"
    elif rules.check(line):
        why = f"not {rules.encoding_name}"
        advice = _ENCODING_ADVICE
    else:
        why = str(error)
        advice = _delimiter_advice(line, delimiter, rules.text_field, alone=False) or _ADVICE
    what = "a row of column names" if rules.csv_header else "a row of CSV"
    return FailedPrecondition(f"{uri} does not begin with {what} ({why}): {advice}")


def require_once(names: Sequence[str], column: str, uri: str) -> None:
    """Raises FailedPrecondition when several columns have the name."""
    if names.count(column) > 1:
        raise FailedPrecondition(f"{uri} has {names.count(column)} columns {column}: rename all but one")


def _numbered_column(columns: int, line: str, delimiter: str, rules: FileRules, uri: str) -> int:
    if rules.text_field == DEFAULT_TEXT_FIELD:
        if columns <= 1 and delimiter != "\t" and "\t" in line:
            raise FailedPrecondition(
                f"{uri} has one column, with tabs in it: "
                r"set csv_delimiter to '\t', or text_field to 1 where they are part of the text"
            )
        if columns <= 1:
            return 0
        raise FailedPrecondition(
            f"{uri} has {columns} columns, without names (csv_header is false): "
            'set text_field to the number of the text\'s column, such as "2" (the first is "1")'
        )
    number = int(rules.text_field)
    if columns and number > columns:
        advice = [
            _delimiter_advice(line, delimiter, "", alone=columns == 1),
            f"set text_field to one of 1 to {columns}",
        ]
        raise FailedPrecondition(
            f"{uri} has {columns} columns, and text_field is {number}: {', or '.join(filter(None, advice))}"
        )
    return number - 1


def _delimiter_advice(line: str, delimiter: str, column: str, *, alone: bool) -> str:
    """Returns which delimiter to set, for messages; empty when no other one seems to fit.

    Args:
        line: The first row, unparsed.
        delimiter: The delimiter that it was split at.
        column: Name of one of the columns.
        alone: Whether that gave a single column, so that any other delimiter in it may be meant.
    """
    others = [other for other in _DELIMITERS if other != delimiter and other in line]
    for other in others:
        if column in _split(line, other):
            return f"set csv_delimiter to {other!r}"
    if others and alone:
        found = " or ".join(map(repr, others))
        return f"set csv_delimiter to {found} if that separates its columns"
    return ""


def _split(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []


def _shown(names: Sequence[str]) -> str:
    """Returns names of columns for a message, shortened where the first row is a text."""
    shown = [name if len(name) <= _MAX_SHOWN_CHARACTERS else f"{name[:_MAX_SHOWN_CHARACTERS]}..." for name in names]
    more = [f"and {len(names) - _MAX_SHOWN_NAMES} more"] if len(names) > _MAX_SHOWN_NAMES else []
    return ", ".join([*shown[:_MAX_SHOWN_NAMES], *more]) or "none"
