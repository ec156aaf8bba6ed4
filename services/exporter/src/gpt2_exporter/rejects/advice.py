"""What users can change so that fewer documents are left out: by reason, and for files by their format."""

from collections.abc import Iterable, Mapping

from gpt2_contracts.tokenizer import END_TOKEN
from gpt2_exporter.corpus.statistics import CorpusStatistics
from gpt2_exporter.files.listing import PARQUET, suffix_of
from gpt2_exporter.files.rules import FileRules
from gpt2_exporter.rejects import reasons

_MAX_DOCUMENT = f"{reasons.MAX_DOCUMENT_BYTES:,} bytes ({reasons.MAX_DOCUMENT_BYTES >> 20} MiB)"
_FIELD_REASONS = (reasons.MISSING, reasons.NULL, reasons.EMPTY, reasons.NOT_A_STRING)
_FILTERED = {
    reasons.TOO_SHORT: "lower documents.min_characters",
    reasons.TOO_LONG: "raise documents.max_characters",
    reasons.DUPLICATE: "leave out documents.drop_duplicates",
}
_JSON, _JSON_LINES = ".json", ".jsonl"
_TABLES = (".csv", ".tsv", PARQUET)


def advice_on_collections(statistics: CorpusStatistics, text_field: str) -> str:
    """Returns what to change in the request or in the collections.

    Args:
        statistics: Counts of the documents left out.
        text_field: Current path of the text.
    """
    correct = ["correct these documents in MongoDB"]
    field = [f"set source.text_field to the path of the text (now {text_field})", *correct]
    return _join(
        statistics,
        {
            **dict.fromkeys(_FIELD_REASONS, field),
            reasons.IN_LIST: [
                "set source.list_separator to the separator of the texts of a list, "
                f"or source.text_field to another path (now {text_field})"
            ],
            reasons.BROKEN_TEXT: correct,
            reasons.BROKEN_BSON: correct,
            reasons.TOO_LARGE: [f"split the larger ones, as a text has at most {_MAX_DOCUMENT}"],
        },
    )


def advice_on_files(statistics: CorpusStatistics, rules: FileRules) -> str:
    """Returns what to change in the request or in the files.

    Args:
        statistics: Counts of the documents left out.
        rules: The current rules.
    """
    return _join(
        statistics, {reason: _advice(reason, _suffixes(statistics, reason), rules) for reason in statistics.rejects}
    )


def _suffixes(statistics: CorpusStatistics, reason: str) -> list[str]:
    """Returns the suffixes of the first files with a reason."""
    sources = [reject["source"] for reject in statistics.sample if reject["reason"] == reason]
    return sorted({suffix_of(source) for source in sources})


def _advice(reason: str, suffixes: list[str], rules: FileRules) -> list[str]:
    fixed = {
        reasons.HAS_MARKERS: f"set document_separator to {END_TOKEN}, "
        "or text_unit to TEXT_UNIT_FILE to take it as text",
        reasons.IN_LIST: "set list_separator to the separator of the texts of a list"
        + (f", or documents_field to {rules.text_field} where each is a document" if _JSON in suffixes else ""),
        reasons.BROKEN_ROW: "put quotes around values that hold the delimiter, quotes or line breaks (RFC 4180), "
        "or set csv_delimiter where the file has another one",
        reasons.DOCUMENTS_INSIDE: "set documents_field to the path of the list of documents, "
        f"or text_field to the path of the text (now {rules.text_field})",
        reasons.NO_DOCUMENTS: f"set documents_field to the path of the list of documents (now {rules.documents_field})",
        rules.broken: f"set encoding to that of the files (now {rules.encoding}), or encoding_errors to "
        "ENCODING_ERRORS_REPLACE or ENCODING_ERRORS_SKIP",
    }
    if suffixes == [PARQUET] and reason.startswith("broken "):
        return ["correct the strings in the .parquet files, which are UTF-8"]
    if reason in fixed:
        return [fixed[reason]]
    if reason.startswith(reasons.OTHER_ENCODING):
        return [_other_encoding(reason.removeprefix(reasons.OTHER_ENCODING), suffixes, rules)]
    if reason in _FIELD_REASONS:
        return list(dict.fromkeys(_field_advice(reason, suffix, rules) for suffix in suffixes))
    if reason == reasons.TOO_LARGE:
        return list(dict.fromkeys(_size_advice(suffix) for suffix in suffixes))
    if reason == reasons.NOT_JSON:
        return list(dict.fromkeys(_json_advice(suffix) for suffix in suffixes))
    return []


def _field_advice(reason: str, suffix: str, rules: FileRules) -> str:
    if suffix in _TABLES:
        what = "number" if not rules.csv_header and suffix != PARQUET else "name"
        return f"set text_field to the {what} of the text's column (now {rules.text_field}), or complete its rows"
    if suffix in (_JSON, _JSON_LINES):
        where = "in a line of the .jsonl files" if suffix == _JSON_LINES else "in an object of the .json files"
        return f"set text_field to the path of the text {where} (now {rules.text_field})"
    if reason == reasons.EMPTY:
        return "remove the empty files, or fill them"
    return "correct the files"


def _size_advice(suffix: str) -> str:
    limit = f"a document has at most {_MAX_DOCUMENT}"
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


def _join(statistics: CorpusStatistics, by_reason: Mapping[str, Iterable[str]]) -> str:
    """Joins the advice for the reasons that occur.

    Args:
        statistics: Counts of the documents left out.
        by_reason: Advice for each reason; equal advice appears once.
    """
    if not statistics.rejects:
        return ", or ".join(_FILTERED[reason] for reason in statistics.filtered if reason in _FILTERED)
    found = [advice for reason in statistics.rejects for advice in by_reason.get(reason, ())]
    return ", or ".join(dict.fromkeys(found)) or "correct the documents"
