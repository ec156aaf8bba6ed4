"""Counts the scripts that texts are written in, such as Latin or Cyrillic, by the names of their letters.

Python's Unicode data has no property for the script, but the name of a letter begins with it.
"""

import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

_CHARACTERS_OF_A_TEXT = 2000
_OTHER = "Other"
_NAMED = (
    *("Latin", "Greek", "Cyrillic", "Armenian", "Hebrew", "Arabic", "Syriac", "Devanagari", "Bengali", "Gurmukhi"),
    *("Gujarati", "Oriya", "Tamil", "Telugu", "Kannada", "Malayalam", "Sinhala", "Thai", "Lao", "Tibetan", "Myanmar"),
    *("Georgian", "Hangul", "Ethiopic", "Cherokee", "Khmer", "Mongolian", "Hiragana", "Katakana", "Bopomofo", "Han"),
)
_BY_FIRST_WORD = {**{name.upper(): name for name in _NAMED}, "CJK": "Han", "FULLWIDTH": "Latin", "FEMININE": "Latin"}
_UNKNOWN = 255


class ScriptCounter:
    """Counts letters by script. What is no letter (digits, spaces, signs) is of no script and is not counted."""

    def __init__(self) -> None:
        self._names = ("", *_NAMED, _OTHER)
        self._numbers = {name: number for number, name in enumerate(self._names)}
        # Filled as characters occur: most texts need few of a million.
        self._script_of = np.full(0x110000, _UNKNOWN, np.uint8)

    def count(self, texts: Sequence[str]) -> Counter[str]:
        """Letters by script in the first 2,000 characters of each text."""
        joined = "".join(text[:_CHARACTERS_OF_A_TEXT] for text in texts)
        codes = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
        scripts = self._script_of[codes]
        new = np.unique(codes[scripts == _UNKNOWN])
        if len(new):
            self._script_of[new] = [self._look_up(chr(code)) for code in new.tolist()]
            scripts = self._script_of[codes]
        found = np.bincount(scripts, minlength=len(self._names))
        return Counter({name: int(found[number]) for number, name in enumerate(self._names) if name and found[number]})

    def _look_up(self, character: str) -> int:
        if unicodedata.category(character)[0] != "L":
            return 0
        word = unicodedata.name(character, "").partition(" ")[0]
        return self._numbers[_BY_FIRST_WORD.get(word, _OTHER)]
