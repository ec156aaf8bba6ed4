"""Cuts long texts where the cut cannot change the tokens.

The memory of an encoder grows with the longest text that it is given at once. GPT-2's pre-tokenisation never lets a
match run from a character that is no white space into white space, and looks back at nothing. So what stands before
such a place and what stands after it can be encoded apart.
"""

import re
from collections.abc import Iterator

PIECE_CHARACTERS = 1 << 18

# What Python calls white space holds all that GPT-2's pre-tokenisation does, and a few characters more.
_CUT = re.compile(r"(?<=\S)[ \n]")


def pieces(text: str, size: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Yields the text in pieces; their tokens, one after another, are those of the text.

    Args:
        text: The text.
        size: Characters of a piece; it ends at the first place to cut from there on.
    """
    begin = 0
    while len(text) - begin > size:
        cut = _CUT.search(text, begin + size)
        if cut is None:
            break
        yield text[begin : cut.start()]
        begin = cut.start()
    yield text[begin:]
