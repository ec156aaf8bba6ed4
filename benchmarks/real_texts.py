"""Real text to measure on, off this machine's own disk: distinct documents out of folders of text files."""

import random
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

_SUFFIXES = (".py", ".pyi", ".txt", ".md", ".rst", ".html", ".json", ".proto", ".go", ".h", ".js", ".c", ".css", ".xml")
_LARGEST_DOCUMENT = 1 << 20


def real_texts(folders: Sequence[Path]) -> Iterator[str]:
    """Yields the text of each file that is UTF-8 and of a megabyte at the most, in a shuffled order that is always the
    same; what another file holds too comes once.

    Args:
        folders: Searched with all below them; links are not followed.
    """
    found = {path for folder in folders for path in folder.rglob("*") if path.suffix in _SUFFIXES and path.is_file()}
    paths = sorted(path for path in found if not path.is_symlink())
    random.Random(1).shuffle(paths)
    seen = set()
    for path in paths:
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        digest = blake2b(text.encode(), digest_size=16).digest()
        if 0 < len(text) <= _LARGEST_DOCUMENT and digest not in seen:
            seen.add(digest)
            yield text
