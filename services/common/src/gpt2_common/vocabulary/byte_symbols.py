"""The alphabet of GPT-2's files: one printable character for each byte.

Source: OpenAI, gpt-2/src/encoder.py (`bytes_to_unicode`). Bytes that are printable in Latin-1 stand for themselves; the
others, in order, are the characters from U+0100 on.
"""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

_PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))


@cache
def symbol_of_byte() -> Mapping[int, str]:
    """The character of each byte, in the order in which OpenAI's vocabulary numbers them."""
    others = [byte for byte in range(256) if byte not in _PRINTABLE]
    symbols = {byte: chr(byte) for byte in _PRINTABLE}
    symbols.update({byte: chr(256 + index) for index, byte in enumerate(others)})
    return MappingProxyType(symbols)


@cache
def byte_of_symbol() -> Mapping[str, int]:
    """The byte of each character."""
    return MappingProxyType({symbol: byte for byte, symbol in symbol_of_byte().items()})


def symbol_bytes(symbol: str) -> bytes:
    """The bytes that a token stands for. Raises KeyError when it holds a character that is no byte's."""
    try:
        return symbol.translate(_latin1_of_symbol()).encode("latin-1")
    except UnicodeEncodeError as error:
        raise KeyError(symbol) from error


@cache
def _latin1_of_symbol() -> Mapping[int, int]:
    """The byte of each character, both as code points; other characters become one that is no byte."""
    table = dict.fromkeys(range(256), 256)
    table.update({ord(symbol): byte for byte, symbol in symbol_of_byte().items()})
    return table
