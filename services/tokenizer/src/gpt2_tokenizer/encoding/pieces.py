"""Cuts long texts where the cut cannot change the tokens.

The memory of an encoder grows with the longest text of a call. GPT-2's pre-tokenisation has no lookbehind, and a
lookahead only after white space. So a text can be cut between two characters that are never adjacent in a match:

- a character other than white space, then a space or a line feed;
- a letter, then a digit or a mark; or a digit, then a letter or a mark. A contraction (`'ll`) ends in a letter, and
  nothing continues it.

The letters, digits and marks are some whose class is the same in every version of Unicode, so that the tables of the
libraries cannot disagree. A text without such a place, such as one word of many megabytes, stays whole: its tokens
depend on all of it.
"""

import re
from collections.abc import Iterator, Sequence

PIECE_CHARACTERS = 1 << 18

_LETTERS = (
    "A-Za-zÀ-ÖØ-öø-ɏΑ-ΡΣ-ωА-яא-תء-غف-ي"  # Latin, Greek, Cyrillic, Hebrew, Arabic
    "\u0904-\u0939\u0e01-\u0e30ぁ-ゖァ-ヺ一-龥가-힣"  # Devanagari, Thai, kana, Han, Hangul
)
_DIGITS = "0-9"
_MARKS = r"!-/:-@\[-`{-~、。「」『』【】・，．！？：；（）،؛؟।“”„–—…"
# White space in Python includes all that of GPT-2's pre-tokenisation, and a few characters more.
_CUT = re.compile(rf"(?<=\S)[ \n]|(?<=[{_LETTERS}])[{_DIGITS}{_MARKS}]|(?<=[{_DIGITS}])[{_LETTERS}{_MARKS}]")


def pieces(text: str, size: int = PIECE_CHARACTERS, *, whole: Sequence[str] = ()) -> Iterator[str]:
    """Yields a text in pieces, whose tokens, one after another, are those of the text.

    Args:
        text: The text.
        size: Minimum characters of a piece except the last; it ends at the next place to cut.
        whole: Texts of added tokens, which are never cut.
    """
    begin = 0
    while len(text) - begin > size:
        cuts = (cut.start() for cut in _CUT.finditer(text, begin + size))
        place = next((cut for cut in cuts if not _is_inside(text, cut, whole)), None)
        if place is None:
            break
        yield text[begin:place]
        begin = place
    yield text[begin:]


def _is_inside(text: str, place: int, whole: Sequence[str]) -> bool:
    """Whether a place is inside one of some texts."""
    return any(token in text[max(0, place - len(token) + 1) : place + len(token) - 1] for token in whole)
