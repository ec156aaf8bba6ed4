"""How bytes become documents: which encoding, what of broken bytes, which part of a file is a document."""

import codecs
from dataclasses import dataclass

from gpt2.exporter.v1 import exporter_service_pb2 as pb

DEFAULT_ENCODING = "utf-8"
# Stands for a broken byte in text whose documents are not known yet; these code points are no characters.
_BROKEN = "\ufdd0\ufdef\ufdd0"
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
        return "\n".encode(self.encoding) == b"\n"

    def decode(self, raw: bytes) -> tuple[str, str]:
        """The text of a document and an empty reason, or an empty text and the reason."""
        try:
            return raw.decode(self.encoding, _ERROR_HANDLERS.get(self.encoding_errors, "strict")), ""
        except UnicodeError:
            return "", self.broken

    def decode_part(self, raw: bytes) -> str:
        """The text of a line whose documents are not known yet; broken bytes are marked in it."""
        text, reason = self.decode(raw)
        return self.mark(raw.decode(self.encoding, "surrogateescape")) if reason else text

    def decoder(self) -> codecs.IncrementalDecoder:
        """Decodes a stream whose documents are not known yet; the broken bytes in what it gives are to be marked."""
        handler = _ERROR_HANDLERS.get(self.encoding_errors, "surrogateescape")
        return codecs.getincrementaldecoder(self.encoding)(handler)

    @staticmethod
    def mark(text: str) -> str:
        """The text with a mark for each broken byte."""
        try:
            text.encode()
        except UnicodeEncodeError:
            return "".join(_BROKEN if "\ud800" <= character <= "\udfff" else character for character in text)
        return text

    def check(self, text: str) -> str:
        """Why a document of marked text is unusable; empty when it is usable."""
        return self.broken if _BROKEN in text else ""
