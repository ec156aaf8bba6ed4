"""Revision of the code: the commit of the checkout that it runs from, for the provenance of artifacts."""

import subprocess
from functools import cache
from pathlib import Path

_SECONDS = 5.0


@cache
def checkout_revision() -> str:
    """Commit of the checkout that this file is tracked in, with `-dirty` where tracked files differ from it.

    Empty where the code was installed without a checkout, as in an image; GPT2_GIT_REVISION has it there.
    """
    here = Path(__file__)
    try:
        # A virtual environment may lie inside the checkout of another project.
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
