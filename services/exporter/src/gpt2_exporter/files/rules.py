"""How bytes become documents: which encoding, what of broken bytes, which part of a file is a document."""

import codecs
from dataclasses import dataclass

from gpt2.exporter.v1 import exporter_service_pb2 as pb

DEFAULT_ENCODING = "utf-8"
_WITHOUT_MARK = "utf-8"
_ERROR_HANDLERS: dict[int, str] = {pb.ENCODING_ERRORS_REPLACE: "replace", pb.ENCODING_ERRORS_SKIP: "ignore"}


@dataclass(frozen=True, slots=True)
class FileRules:
    """The part of a request that says how files are read."""

    text_field: str
    """Path of the text in a JSON object; name of its column in a table."""
    encoding: str
    """Encoding of the files."""
    encoding_errors: int = pb.ENCODING_ERRORS_STRICT
    """What is done with bytes that do not fit it: a value of EncodingErrors."""
    text_unit: int = pb.TEXT_UNIT_FILE
    """What a document is in plain text: a value of TextUnit."""

    @property
    def broken(self) -> str:
        """The reason of a document with bytes that do not fit."""
        return f"broken {codecs.lookup(self.encoding).name.upper()}"

    @property
    def has_line_ends(self) -> bool:
        """Whether a line ends with the byte 10, and with nothing else, in the encoding."""
        return "\n".encode(self.encoding).removeprefix(codecs.BOM_UTF8) == b"\n"

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
        return self._decode(raw, _ERROR_HANDLERS.get(self.encoding_errors, "surrogateescape"), begins)

    def decoder(self) -> codecs.IncrementalDecoder:
        """Decodes a stream whose documents are not known yet; broken bytes are lone surrogates in what it gives."""
        handler = _ERROR_HANDLERS.get(self.encoding_errors, "surrogateescape")
        return codecs.getincrementaldecoder(self.encoding)(handler)

    def check(self, text: str) -> str:
        """Why a document with lone surrogates is unusable; empty when it is usable."""
        try:
            text.encode()
        except UnicodeEncodeError:
            return self.broken
        return ""

    def _decode(self, raw: bytes, errors: str, begins: bool) -> str:
        text = raw.decode(_WITHOUT_MARK if self._has_mark else self.encoding, errors)
        return text.removeprefix("\ufeff") if self._has_mark and begins else text

    @property
    def _has_mark(self) -> bool:
        return codecs.lookup(self.encoding).name == "utf-8-sig"
