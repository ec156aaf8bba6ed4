"""Models of a Hugging Face hub: their addresses, and the Git LFS pointers that a clone of one can hold.

Apart from the download, whose library takes long to import.
"""

import re
from dataclasses import dataclass

from gpt2_common.errors import InvalidRequest

SCHEME = "hf://"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_FORM = re.compile(r"hf://(?P<repository>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A model on a hub: `organisation/name`, and a branch, a tag or a commit."""

    repository: str
    revision: str = "main"

    @property
    def root(self) -> str:
        """The URI without a revision, which allowed roots are compared with."""
        return f"{SCHEME}{self.repository}"

    @classmethod
    def parse(cls, uri: str) -> "HubAddress":
        """Reads `hf://organisation/name` with `@revision` at its end or without. Raises InvalidRequest."""
        found = _FORM.fullmatch(uri.rstrip("/"))
        if found is None or ".." in uri:
            form = "hf://organisation/name or hf://organisation/name@revision"
            raise InvalidRequest([("uri", f"{uri[:200]!r} is no model of a hub: write {form}")])
        return cls(found["repository"], found["revision"] or "main")


def lfs_problem(name: str, beginning: bytes) -> str | None:
    """What is wrong with a file that is a Git LFS pointer, a small text in place of a large file; None for any other.

    Args:
        name: The file's name, for the message.
        beginning: Its first 64 bytes or more.
    """
    if not beginning.startswith(_LFS_POINTER):
        return None
    return f"{name} is a Git LFS pointer: fetch the file itself (git lfs pull)"
