"""Text that UTF-8 can encode: protobuf, files and sockets take no lone surrogates, which undecodable bytes become.

File names, column names and JSON keys can hold them, and messages, logs and properties quote those.
"""

import re

_SURROGATES = re.compile("[\ud800-\udfff]")
_ESCAPED_BYTES = range(0xDC80, 0xDD00)


def escape_surrogates(text: str, backslash: str = "\\") -> str:
    r"""The text with `\xNN` for each byte that was not decodable (PEP 383), and `\uNNNN` for other lone surrogates.

    Args:
        text: Any text.
        backslash: What an escape begins with; two backslashes where the text is JSON already.
    """

    def escape(found: re.Match[str]) -> str:
        code = ord(found[0])
        return f"{backslash}x{code - 0xDC00:02x}" if code in _ESCAPED_BYTES else f"{backslash}u{code:04x}"

    return text if text.isascii() else _SURROGATES.sub(escape, text)
