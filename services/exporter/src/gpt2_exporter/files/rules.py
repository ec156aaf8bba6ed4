"""How bytes become documents: which encoding, what of broken bytes, which part of a file is a document."""

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
    """The part of a request that says how files are read."""

    text_field: str = DEFAULT_TEXT_FIELD
    """Path of the text in a JSON object; name or number of its column in a table."""
    encoding: str = DEFAULT_ENCODING
    """Encoding of the files."""
    encoding_errors: int = pb.ENCODING_ERRORS_STRICT
    """What is done with bytes that do not fit it: a value of EncodingErrors."""
    text_unit: int = pb.TEXT_UNIT_FILE
    """What a document is in plain text: a value of TextUnit."""
    csv_delimiter: str = ""
    """What separates columns; empty for the one of the file's type."""
    csv_header: bool = True
    """Whether the first row names the columns."""
    document_separator: str = ""
    """What stands between documents in plain text; empty for none."""
    documents_field: str = ""
    """Path of the list of documents in a JSON object; empty for none."""
    list_separator: str | None = None
    """What stands between the texts of a list; None where a list makes the document unusable."""

    @classmethod
    def of(cls, request: pb.ImportFilesRequest) -> "FileRules":
        """The rules of a request."""
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
        """Where the text is in a JSON object."""
        return FieldPath.of(self.text_field, self.list_separator)

    @property
    def encoding_name(self) -> str:
        """Name of the encoding, for messages."""
        return codecs.lookup(self.encoding).name.upper()

    @property
    def broken(self) -> str:
        """The reason of a document with bytes that do not fit."""
        return f"broken {self.encoding_name}"

    @property
    def has_line_ends(self) -> bool:
        """Whether a line ends with the byte 10, and with nothing else, in the encoding."""
        return "\n".encode(self.encoding).removeprefix(codecs.BOM_UTF8) == b"\n"

    def other_encoding(self, begin: bytes) -> str:
        """The encoding that a file's byte order mark names where it is not the one of the rules; else empty."""
        name = codecs.lookup(self.encoding).name
        found = [(mark, encodings) for bom, mark, encodings in _MARKS if begin.startswith(bom)]
        return "" if not found or any(name in encodings for _, encodings in found) else found[0][0]

    def decode(self, raw: bytes, *, begins: bool = True) -> tuple[str, str]:
        """The text of a document and an empty reason, or an empty text and the reason.

        Args:
            raw: Its bytes.
            begins: Whether they begin a file, so that a byte order mark can stand there.
        """
        try:
            return self._decode(raw, _ERROR_HANDLERS.get(self.encoding_errors, "strict"), begins), ""
        except UnicodeError:
            return "", self.broken

    def decode_part(self, raw: bytes, *, begins: bool) -> str:
        """The text of a line whose documents are not known yet; broken bytes are lone surrogates in it."""
        return self._decode(raw, _ERROR_HANDLERS.get(self.encoding_errors, _SURROGATES), begins)

    def decoder(self) -> codecs.IncrementalDecoder:
        """Decodes a stream whose documents are not known yet; broken bytes are lone surrogates in what it gives."""
        handler = _ERROR_HANDLERS.get(self.encoding_errors, _SURROGATES)
        return codecs.getincrementaldecoder(self.encoding)(handler)

    def is_blank(self, raw: bytes, *, begins: bool) -> bool:
        """Whether a line holds nothing but white space, in an encoding that has line ends."""
        return not (raw.removeprefix(codecs.BOM_UTF8) if begins else raw).strip()

    def check(self, text: str) -> str:
        """Why a document with lone surrogates is unusable; empty when it is usable."""
        try:
            text.encode()
        except UnicodeEncodeError:
            return self.broken
        return ""

    def _decode(self, raw: bytes, errors: str, begins: bool) -> str:
        # This codec would take a mark off each part of a file.
        encoding = "utf-8" if codecs.lookup(self.encoding).name == "utf-8-sig" else self.encoding
        text = raw.decode(encoding, errors)
        return text.removeprefix(BYTE_ORDER_MARK) if begins else text


def delimiter_of(text: str) -> str:
    r"""The character that a request's `csv_delimiter` stands for: `\t` is a tab."""
    return "\t" if text == _TAB else text


def _as_surrogates(error: UnicodeError) -> tuple[str, int]:
    """As `surrogateescape`, for encodings too in which bytes below 128 can be broken; those are U+DCFF."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    broken = error.object[error.start : error.end]
    return "".join(chr(0xDC00 + byte) if byte >= 0x80 else "\udcff" for byte in broken), error.end


codecs.register_error(_SURROGATES, _as_surrogates)
