"""Finds the stacks that run in a checkout, so that commands need no address.

Those of a folder are the one in its `.gpt2`, those one level below, such as `.gpt2/demo`, and those started from it
with another `--folder`, for which `.gpt2/elsewhere` holds a file each. The nearest folder with any counts, from the
current one up to the checkout's root.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt2_orchestration.stack import FOLDER_VARIABLE
from gpt2_orchestration.stack.errors import StackError
from gpt2_orchestration.stack.record import running_record
from gpt2_orchestration.stack.settings import StackFolder

USUAL_FOLDER = ".gpt2"
_ELSEWHERE = "elsewhere"


class SeveralStacks(StackError):
    """Several stacks run here, and none of them is the one in `.gpt2`."""


def find_stacks(start: Path) -> list[Path]:
    """Folders of the stacks that run for a folder: that in `.gpt2` first.

    Args:
        start: Where a command was started.
    """
    for folder in _up_to_root(start.absolute()):
        found = list(dict.fromkeys(path for path in _candidates(folder) if running_record(path) is not None))
        if found:
            return found
    return []


def choose_stack(found: list[Path]) -> tuple[Path | None, str]:
    """The stack that a command takes, and what to say of it; None where none runs.

    Raises:
        SeveralStacks: There is no telling which is meant.
    """
    if not found:
        return None, ""
    if len(found) == 1:
        return found[0], ""
    names = ", ".join(map(str, found))
    if found[0].name == USUAL_FOLDER:
        return found[0], f"several stacks run: {names}; this is the first: {FOLDER_VARIABLE} chooses another"
    raise SeveralStacks(f"several stacks run: {names}; set {FOLDER_VARIABLE} to the folder of the one that is meant")


@contextmanager
def findable(folder: Path, start: Path) -> Iterator[None]:
    """Lets commands that are started in `start` find the stack of another folder, as long as the context lasts."""
    home = next((place for place in _up_to_root(start.absolute()) if (place / USUAL_FOLDER).is_dir()), start.absolute())
    usual, absolute = home / USUAL_FOLDER, folder.absolute()
    if absolute == usual or absolute.parent == usual:
        yield
        return
    pointer = usual / _ELSEWHERE / hashlib.sha256(os.fsencode(absolute)).hexdigest()[:16]
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.write_text(str(absolute), encoding="utf-8")
    try:
        yield
    finally:
        pointer.unlink(missing_ok=True)
        with suppress(OSError):
            pointer.parent.rmdir()
            usual.rmdir()


def _candidates(folder: Path) -> Iterator[Path]:
    usual = folder / USUAL_FOLDER
    yield usual
    with suppress(OSError):
        yield from sorted(path.parent for path in usual.glob(f"*/{StackFolder(usual).lock.name}"))
    with suppress(OSError, UnicodeDecodeError):
        yield from sorted(Path(pointer.read_text(encoding="utf-8")) for pointer in (usual / _ELSEWHERE).iterdir())


def _up_to_root(start: Path) -> Iterator[Path]:
    """A folder and those above it, up to the root of the checkout that it is in; outside of one, to the top."""
    for folder in (start, *start.parents):
        yield folder
        if (folder / ".git").exists():
            return
