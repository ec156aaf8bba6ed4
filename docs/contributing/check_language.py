"""Finds retired words (`docs/contributing/language.md`) in the repository's files; exits with 1 where there are any."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
GLOSSARY = Path(__file__).with_name("language.md")
FILES = ("*.py", "*.js", "*.html", "*.proto", "*.md", "*.yml", "*.yaml", "*.toml", "Makefile", "*Dockerfile")
EXEMPT = (
    ":!*_pb2.py",
    ":!*_pb2.pyi",
    ":!*_pb2_grpc.py",
    ":!docs/contributing/language.md",
    ":!CHANGELOG.md",
    ":!docs/decisions",
    ":!*/earlier_names.py",
)
"""Generated code, and texts that quote former names."""


def retired_words() -> re.Pattern[str]:
    """A pattern of the words in the first column of the glossary's second table.

    Spaces, line breaks, hyphens or underscores can join the parts of a word, and it can be capitalised. A word that
    ends in an underscore begins a name.
    """
    table = GLOSSARY.read_text(encoding="utf-8").partition("## Retired words")[2].partition("## ")[0]
    rows = (line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    words = [word for row in rows for word in re.findall(r"`([^`]+)`", row)]
    patterns = (_pattern_of(word) for word in words)
    return re.compile(rf"(?<![A-Za-z])(?:{'|'.join(patterns)})")


def _pattern_of(word: str) -> str:
    if word.endswith("_"):
        return re.escape(word)
    first = f"[{word[0].upper()}{word[0]}]"
    return first + r"[\s_#*/-]+".join(map(re.escape, word.split()))[1:] + r"(?![A-Za-z])"


def find(pattern: re.Pattern[str], path: Path) -> Iterator[tuple[int, str]]:
    """Yields the line number and the word of each match in a file."""
    text = path.read_text(encoding="utf-8", errors="replace")
    for match in pattern.finditer(text):
        yield text.count("\n", 0, match.start()) + 1, " ".join(match[0].split())


def main(pathspecs: list[str]) -> int:
    """Prints each place, in the whole repository or under the given paths."""
    command = ["git", "ls-files", "--", *(pathspecs or FILES), *EXEMPT]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    pattern = retired_words()
    places = [(name, *found) for name in names if (ROOT / name).is_file() for found in find(pattern, ROOT / name)]
    for name, line, word in places:
        print(f"{name}:{line}: {word!r} is retired: docs/contributing/language.md has the word to use")
    return 1 if places else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
