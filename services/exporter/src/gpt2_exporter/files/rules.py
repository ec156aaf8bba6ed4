"""The rules to read files by: their encoding, invalid bytes, and which part of a file is a document."""

import codecs
from dataclasses import dataclass

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_exporter.corpus.field_path import DEFAULT_TEXT_FIELD, FieldPath

DEFAULT_ENCODING = "utf-8"
BYTE_ORDER_MARK = "\ufeff"
_TAB = r"\t"
_SURROGATES = "gpt2.surrogates"
_ERROR_HANDLERS: dict[int, str] = {pb.ENCODING_ERRORS_REPLACE: "replace", pb.ENCODING_ERRORS_SKIP: "ignore"}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8", ("utf-8", "utf-8-sig")),
    (codecs.BOM_UTF32_LE, "utf-32", ("utf-32", "utf-32-le")),
    (codecs.BOM_UTF32_BE, "utf-32", ("utf-32", "utf-32-be")),
    (codecs.BOM_UTF16_LE, "utf-16", ("utf-16", "utf-16-le")),
    (codecs.BOM_UTF16_BE, "utf-16", ("utf-16", "utf-16-be")),
)
MAX_MARK_BYTES = max(len(mark) for mark, _, _ in _MARKS)
"""Bytes of the longest byte order mark."""


@dataclass(frozen=True, slots=True)
class FileRules:
    """The options of a request for reading files."""

    text_field: str = DEFAULT_TEXT_FIELD
    """Path of the text in a JSON object; name or number of its column in a table."""
    encoding: str = DEFAULT_ENCODING
    """Encoding of the files."""
    encoding_errors: int = pb.ENCODING_ERRORS_STRICT
    """Treatment of bytes that are invalid in it: a value of EncodingErrors."""
    text_unit: int = pb.TEXT_UNIT_FILE
    """Unit of plain text that is a document: a value of TextUnit."""
    csv_delimiter: str = ""
    """Delimiter of columns; empty for that of the file's format."""
    csv_header: bool = True
    """Whether the first row names the columns."""
    document_separator: str = ""
    """Separator of documents in plain text; empty for none."""
    documents_field: str = ""
    """Path of the list of documents in a JSON object; empty for none."""
    list_separator: str | None = None
    """Separator between the texts of a list; None where a list makes the document unusable."""

    @classmethod
    def of(cls, request: pb.ImportFilesRequest) -> "FileRules":
        """Returns the rules of a request."""
        return cls(
            text_field=request.text_field or DEFAULT_TEXT_FIELD,
            encoding=request.encoding or DEFAULT_ENCODING,
            encoding_errors=request.encoding_errors,
            text_unit=request.text_unit,
            csv_delimiter=delimiter_of(request.csv_delimiter),
            csv_header=not request.HasField("csv_header") or request.csv_header,
            document_separator=request.document_separator,
            documents_field=request.documents_field,
            list_separator=request.list_separator if request.HasField("list_separator") else None,
        )

    @property
    def field(self) -> FieldPath:
        """Path of the text in a JSON object."""
        return FieldPath.of(self.text_field, self.list_separator)

    @property
    def encoding_name(self) -> str:
        """Name of the encoding, for messages."""
        return codecs.lookup(self.encoding).name.upper()

    @property
    def broken(self) -> str:
        """Reason of a document with invalid bytes."""
        return f"broken {self.encoding_name}"

    @property
    def has_line_ends(self) -> bool:
        """Whether the byte 10, and nothing else, ends a line in the encoding."""
        return "\n".encode(self.encoding).removeprefix(codecs.BOM_UTF8) == b"\n"

    def other_encoding(self, begin: bytes) -> str:
        """Returns the encoding of a byte order mark where it is not that of the rules; else empty."""
        name = codecs.lookup(self.encoding).name
        found = [(mark, encodings) for bom, mark, encodings in _MARKS if begin.startswith(bom)]
        return "" if not found or any(name in encodings for _, encodings in found) else found[0][0]

    def decode(self, raw: bytes, *, begins: bool = True) -> tuple[str, str]:
        """Returns the text of a document and an empty reason, or an empty text and the reason.

        Args:
            raw: Its bytes.
            begins: Whether the file begins with them, so that they may have a byte order mark.
        """
        try:
            return self._decode(raw, _ERROR_HANDLERS.get(self.encoding_errors, "strict"), begins), ""
        except UnicodeError:
            return "", self.broken

    def decode_part(self, raw: bytes, *, begins: bool) -> str:
        """Returns the text of a line before it is divided into documents; invalid bytes become lone surrogates."""
        return self._decode(raw, _ERROR_HANDLERS.get(self.encoding_errors, _SURROGATES), begins)

    def decoder(self) -> codecs.IncrementalDecoder:
        """Returns a decoder of a stream before it is divided into documents; invalid bytes become lone surrogates."""
        handler = _ERROR_HANDLERS.get(self.encoding_errors, _SURROGATES)
        return codecs.getincrementaldecoder(self.encoding)(handler)

    def is_blank(self, raw: bytes, *, begins: bool) -> bool:
        """Whether a line is only white space, in an encoding with line ends."""
        return not (raw.removeprefix(codecs.BOM_UTF8) if begins else raw).strip()

    def check(self, text: str) -> str:
        """Returns the reason why a text with lone surrogates is unusable; empty for other texts."""
        try:
            text.encode()
        except UnicodeEncodeError:
            return self.broken
        return ""

    def _decode(self, raw: bytes, errors: str, begins: bool) -> str:
        # The codec utf-8-sig would remove a mark from each part of a file.
        encoding = "utf-8" if codecs.lookup(self.encoding).name == "utf-8-sig" else self.encoding
        text = raw.decode(encoding, errors)
        return text.removeprefix(BYTE_ORDER_MARK) if begins else text


def delimiter_of(text: str) -> str:
    r"""Returns the character of a request's `csv_delimiter`: `\t` is a tab."""
    return "\t" if text == _TAB else text


def _as_surrogates(error: UnicodeError) -> tuple[str, int]:
    """Handles errors as `surrogateescape`; also bytes below 128, invalid in some encodings, which become U+DCFF."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    broken = error.object[error.start : error.end]
    return "".join(chr(0xDC00 + byte) if byte >= 0x80 else "\udcff" for byte in broken), error.end


codecs.register_error(_SURROGATES, _as_surrogates)
