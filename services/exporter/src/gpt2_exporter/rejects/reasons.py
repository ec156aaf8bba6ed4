"""Reasons why a document is left out of a corpus, as in `rejects.jsonl`, `summary.json` and errors."""

from typing import Any

from gpt2_contracts.tokenizer import END_TOKEN

MISSING = "text missing"
NULL = "text null"
EMPTY = "text empty"
NOT_A_STRING = "text not a string"
IN_LIST = "text in a list, but list_separator is not set"
BROKEN_TEXT = "broken UTF-8"
BROKEN_BSON = "broken BSON"
BROKEN_ROW = "broken CSV row"
NOT_JSON = "not a JSON object"
DOCUMENTS_INSIDE = "text missing, but a list inside"
NO_DOCUMENTS = "nothing at documents_field"
HAS_MARKERS = f"{END_TOKEN} inside"
OTHER_ENCODING = "byte order mark of "
"""Prefix of the reason of a file in another encoding; the encoding's name follows."""
TOO_LARGE = "too large"

# Usable documents that the options of the request leave out.
TOO_SHORT = "too short"
TOO_LONG = "too long"
DUPLICATE = "duplicate"

MAX_DOCUMENT_BYTES = 256 << 20
"""Bytes of one document. A larger one fits neither the Parquet page that holds it nor flat memory."""


def unusable_reason(value: Any) -> str:
    """Returns why a value is not a text; empty when it is one. `...` stands for a missing value."""
    if isinstance(value, str):
        return "" if value else EMPTY
    if value is ...:
        return MISSING
    return NULL if value is None else NOT_A_STRING
