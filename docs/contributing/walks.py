"""Keeps the line numbers of the walks in `CONTRIBUTING.md`: `package/file.py:LINE` `symbol` is where it is defined.

python docs/contributing/walks.py            write the current line numbers
python docs/contributing/walks.py --check    fail where a line number is not current, or a file or symbol does not exist
"""

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "CONTRIBUTING.md"
_PLACE = re.compile(r"`(?P<path>[\w/]+\.py):(?P<line>\d+)`(?P<space>\s+)`(?P<symbol>[\w.]+)`")


def definitions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yields the dotted name and the line of each function and class below a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield f"{prefix}{child.name}", child.lineno
            yield from definitions(child, f"{prefix}{child.name}.")


def renew(place: re.Match[str]) -> str:
    """Returns a place with the current line of its symbol. Raises ValueError when there is no such file or symbol."""
    paths = sorted(ROOT.glob(f"*/src/{place['path']}")) or sorted(ROOT.glob(f"services/*/src/{place['path']}"))
    lines = dict(definitions(ast.parse(paths[0].read_text(encoding="utf-8")))) if paths else {}
    if place["symbol"] not in lines:
        raise ValueError(f"CONTRIBUTING.md: {place['path']} does not define {place['symbol']}; correct the walk")
    return f"`{place['path']}:{lines[place['symbol']]}`{place['space']}`{place['symbol']}`"


def main(arguments: Sequence[str]) -> int:
    """Writes or checks the places. Returns the exit status."""
    try:
        text = _PLACE.sub(renew, GUIDE.read_text(encoding="utf-8"))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if arguments != ["--check"]:
        GUIDE.write_text(text, encoding="utf-8")
    elif text != GUIDE.read_text(encoding="utf-8"):
        print("CONTRIBUTING.md: the walks name other lines; run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
