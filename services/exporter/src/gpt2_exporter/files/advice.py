"""What users can do about unusable documents of files: by the reason, and by the format of the files that have it."""

from gpt2_exporter.corpus import record
from gpt2_exporter.corpus.advice import FIELD_REASONS, MAX_DOCUMENT, advice_on
from gpt2_exporter.corpus.tally import Tally
from gpt2_exporter.files.listing import PARQUET, suffix_of
from gpt2_exporter.files.objects import DOCUMENTS_INSIDE, NO_DOCUMENTS, NOT_JSON
from gpt2_exporter.files.plain import END_OF_TEXT, HAS_MARKERS
from gpt2_exporter.files.reading import OTHER_ENCODING
from gpt2_exporter.files.rules import FileRules
from gpt2_exporter.files.table import BROKEN_ROW

_JSON, _JSON_LINES = ".json", ".jsonl"
_TABLES = (".csv", ".tsv", PARQUET)


def advice_on_files(tally: Tally, rules: FileRules) -> str:
    """What to change in the request or in the files.

    Args:
        tally: What was left out.
        rules: What the request says now.
    """
    return advice_on(tally, {reason: _advice(reason, _suffixes(tally, reason), rules) for reason in tally.rejects})


def _suffixes(tally: Tally, reason: str) -> list[str]:
    """The formats of the first files that have a reason."""
    sources = [reject["source"] for reject in tally.sample if reject["reason"] == reason]
    return sorted({suffix_of(source) for source in sources})


def _advice(reason: str, suffixes: list[str], rules: FileRules) -> list[str]:
    fixed = {
        HAS_MARKERS: f"set document_separator to {END_OF_TEXT}, or text_unit to TEXT_UNIT_FILE to take it as text",
        record.IN_LIST: "set list_separator to what stands between the texts of a list"
        + (f", or documents_field to {rules.text_field} where each is a document" if _JSON in suffixes else ""),
        BROKEN_ROW: "put quotes around values that hold the delimiter, quotes or line breaks (RFC 4180), "
        "or set csv_delimiter where the file has another one",
        DOCUMENTS_INSIDE: "set documents_field to the path of the list of documents, "
        f"or text_field to the path of the text (now {rules.text_field})",
        NO_DOCUMENTS: f"set documents_field to the path of the list of documents (now {rules.documents_field})",
        rules.broken: f"set encoding to that of the files (now {rules.encoding}), or encoding_errors to "
        "ENCODING_ERRORS_REPLACE or ENCODING_ERRORS_SKIP",
    }
    if suffixes == [PARQUET] and reason.startswith("broken "):
        return ["correct the strings in the .parquet files, which are UTF-8"]
    if reason in fixed:
        return [fixed[reason]]
    if reason.startswith(OTHER_ENCODING):
        return [_other_encoding(reason.removeprefix(OTHER_ENCODING), suffixes, rules)]
    if reason in FIELD_REASONS:
        return list(dict.fromkeys(_field_advice(reason, suffix, rules) for suffix in suffixes))
    if reason == record.TOO_LARGE:
        return list(dict.fromkeys(_size_advice(suffix) for suffix in suffixes))
    if reason == NOT_JSON:
        return list(dict.fromkeys(_json_advice(suffix) for suffix in suffixes))
    return []


def _field_advice(reason: str, suffix: str, rules: FileRules) -> str:
    if suffix in _TABLES:
        what = "number" if not rules.csv_header and suffix != PARQUET else "name"
        return f"set text_field to the {what} of the text's column (now {rules.text_field}), or complete its rows"
    if suffix in (_JSON, _JSON_LINES):
        where = "in a line of the .jsonl files" if suffix == _JSON_LINES else "in an object of the .json files"
        return f"set text_field to the path of the text {where} (now {rules.text_field})"
    if reason == record.EMPTY:
        return "remove the empty files, or fill them"
    return "correct the files"


def _size_advice(suffix: str) -> str:
    limit = f"a document has at most {MAX_DOCUMENT}"
    if suffix in (*_TABLES, _JSON_LINES):
        return f"split the larger ones, as {limit}; quotes that never end make a row large too"
    if suffix == _JSON:
        return f"set documents_field to the path of the list of documents, or split the larger ones, as {limit}"
    return f"set document_separator or text_unit, which cut a file into documents, or split it, as {limit}"


def _json_advice(suffix: str) -> str:
    if suffix == _JSON_LINES:
        return "write one JSON object in each line of the .jsonl files"
    return "write the .json files as an array of objects, or as objects one after another"


def _other_encoding(encoding: str, suffixes: list[str], rules: FileRules) -> str:
    lines = [suffix for suffix in suffixes if suffix in (".csv", ".tsv", _JSON_LINES)]
    if lines and not FileRules(encoding=encoding).has_line_ends:
        return f"convert the {' and '.join(lines)} files to utf-8, as their lines cannot be found in {encoding}"
    return f"set encoding to {encoding} (now {rules.encoding}), and import the files of each encoding by themselves"
