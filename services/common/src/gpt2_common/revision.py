"""Which code this is: the commit of the checkout that it runs from, for the records of what it makes."""

import subprocess
from functools import cache
from pathlib import Path

_SECONDS = 5.0


@cache
def checkout_revision() -> str:
    """Commit of the checkout that this file is tracked in, with `-dirty` where tracked files differ from it.

    Empty where the code was installed without a checkout, as in an image; GPT2_GIT_REVISION says it there.
    """
    here = Path(__file__)
    try:
        # A virtual environment may lie inside somebody else's checkout, which says nothing of this code.
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=_SECONDS, stdin=subprocess.DEVNULL
    )
    return done.stdout.strip()
