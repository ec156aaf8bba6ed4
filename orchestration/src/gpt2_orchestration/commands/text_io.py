"""Text input and output of commands: input is UTF-8 or an error, output escapes what the encoding lacks.

Python passes bytes that are not UTF-8 through arguments as lone surrogates, which protobuf and JSON reject.
"""

import sys
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import IO

from gpt2_orchestration.commands.errors import UsageError

_ADVICE = "convert it to UTF-8, for example with `iconv -f ISO-8859-1 -t UTF-8`"


def check_arguments(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Raises UsageError where an argument or a GPT2_ variable is not UTF-8."""
    for number, argument in enumerate(arguments, 1):
        check_text(f"argument {number}", argument)
    for name, value in environment.items():
        if name.startswith("GPT2_"):
            check_text(name, value)


def check_text(source: str, text: str) -> None:
    """Raises UsageError where a text has bytes that are not UTF-8; the message begins with its source."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # PEP 383: surrogate 0xDC00 plus the byte.
        found = ord(text[error.start])
        what = f"the byte 0x{found - 0xDC00:02x}" if 0xDC80 <= found <= 0xDCFF else f"the surrogate U+{found:04X}"
        raise UsageError(f"{source}: {what} at character {error.start} is not UTF-8; {_ADVICE}") from error


def read_input() -> str:
    """All of standard input. Raises UsageError where it is not UTF-8."""
    return _decoded("standard input", _bytes(sys.stdin))


def read_file(option: str, path: Path) -> str:
    """Text of a file that an option names; `-` is standard input. Raises UsageError."""
    if str(path) == "-":
        return read_input()
    try:
        return _decoded(f"{option} {path}", path.read_bytes())
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}; name a file of UTF-8 text") from error


def prepare_output() -> None:
    """Makes standard output and error escape characters that their encodings lack."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and not is_unicode(stream):
            stream.reconfigure(errors="backslashreplace")


def is_unicode(stream: IO[str]) -> bool:
    """Whether a stream's encoding is Unicode."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")


def _bytes(stream: IO[str]) -> bytes:
    buffer: IO[bytes] = stream.buffer  # type: ignore[attr-defined]  # standard streams have one
    return buffer.read()


def _decoded(source: str, content: bytes) -> str:
    try:
        # A byte order mark is not part of the text.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        found = f"the byte 0x{content[error.start]:02x} at byte {error.start} (line {line})"
        raise UsageError(f"{source}: {found} is not UTF-8; {_ADVICE}") from error
    return text.replace("\r\n", "\n")
