"""Counts the letters of texts by script, such as Latin or Cyrillic.

Python's Unicode data lacks the property Script (UAX #24), but the name of a letter begins with its script.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

_MAX_CHARACTERS_PER_TEXT = 2000
_OTHER = "Other"
_NAMED = (
    *("Latin", "Greek", "Cyrillic", "Armenian", "Hebrew", "Arabic", "Syriac", "Devanagari", "Bengali", "Gurmukhi"),
    *("Gujarati", "Oriya", "Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala", "Thai", "Lao", "Tibetan", "Myanmar"),
    *("Georgian", "Hangul", "Ethiopic", "Cherokee", "Khmer", "Mongolian", "Hiragana", "Katakana", "Bopomofo", "Han"),
)
_BY_FIRST_WORD = {**{name.upper(): name for name in _NAMED}, "CJK": "Han", "FULLWIDTH": "Latin", "FEMININE": "Latin"}
_UNKNOWN = 255


class ScriptCounter:
    """Counts letters by script; digits, spaces and other characters do not count."""

    def __init__(self) -> None:
        self._names = ("", *_NAMED, _OTHER)
        self._numbers = {name: number for number, name in enumerate(self._names)}
        # [code points], uint8: filled as characters occur, since most texts have few of a million.
        self._script_of = np.full(0x110000, _UNKNOWN, np.uint8)

    def count(self, texts: Sequence[str]) -> Counter[str]:
        """Returns the letters by script in the first 2,000 characters of each text."""
        joined = "".join(text[:_MAX_CHARACTERS_PER_TEXT] for text in texts)
        codes = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
        scripts = self._script_of[codes]
        new = np.unique(codes[scripts == _UNKNOWN])
        if len(new):
            self._script_of[new] = [self._number_of(chr(code)) for code in new.tolist()]
            scripts = self._script_of[codes]
        found = np.bincount(scripts, minlength=len(self._names))
        return Counter({name: int(found[number]) for number, name in enumerate(self._names) if name and found[number]})

    def _number_of(self, character: str) -> int:
        if unicodedata.category(character)[0] != "L":
            return 0
        word = unicodedata.name(character, "").partition(" ")[0]
        return self._numbers[_BY_FIRST_WORD.get(word, _OTHER)]
