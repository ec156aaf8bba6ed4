"""Finds the files that the URIs of a request stand for, in an order that depends on names alone."""

import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2_common.artifacts.roots import filesystem_of
from gpt2_common.errors import FailedPrecondition, InvalidRequest, NotFound

COMPRESSIONS = (".gz", ".zst")
PARQUET = ".parquet"
_BARE_SUFFIXES = (".txt", ".md", ".csv", ".json", ".jsonl", PARQUET)
SUFFIXES = (*_BARE_SUFFIXES, *(suffix + end for suffix in _BARE_SUFFIXES for end in COMPRESSIONS))
SUFFIXES_IN_WORDS = "one of .txt, .md, .csv, .json, .jsonl or .parquet, also with .gz or .zst after it"
_GLOB_CHARACTERS = frozenset("*[")

AllowCheck = Callable[[str, str], str]
"""Takes a request's field and a URI; returns the URI normalised, or raises InvalidRequest when it is not allowed."""


@dataclass(frozen=True, slots=True)
class TextFile:
    """One file to read."""

    filesystem: Any
    """The fsspec file system that it is in."""
    path: str
    """Path in that file system."""
    uri: str
    """Its address, normalised."""
    name: str
    """Path relative to the folder that the request names; the file's own name where it names the file."""
    size: int
    """Bytes."""

    @property
    def compression(self) -> str:
        """The end of its name that says how it is compressed; empty for none."""
        end = posixpath.splitext(self.path)[1].lower()
        return end if end in COMPRESSIONS else ""

    @property
    def suffix(self) -> str:
        """The end of its name, before that for compression, that says how it is read; in lower case."""
        return posixpath.splitext(self.path[: len(self.path) - len(self.compression)])[1].lower()


def list_files(uris: Sequence[str], require_allowed: AllowCheck) -> list[TextFile]:
    """Finds the files.

    Args:
        uris: Folders, files or globs, as the request has them.
        require_allowed: Checks each URI, and each file found, against the allowed roots; links are followed first.

    Returns:
        The files in the order of the URIs, within a folder in the order of names; each once.

    Raises:
        InvalidRequest: A URI or a file is outside the roots, or a URI names a file of another type.
        NotFound: There is nothing at a URI.
        FailedPrecondition: There is no file to read in a folder, or what has a file's name is none.
    """
    found: dict[str, TextFile] = {}
    for index, uri in enumerate(uris):
        field = f"uris[{index}]"
        for file in _list(field, require_allowed(field, uri), require_allowed):
            found.setdefault(file.uri, file)
    return list(found.values())


def _list(field: str, uri: str, require_allowed: AllowCheck) -> list[TextFile]:
    filesystem, root = filesystem_of(uri)
    base, paths = _expand(field, uri, filesystem, root.rstrip("/"))
    texts = sorted((path for path in paths if path.lower().endswith(SUFFIXES)), key=lambda path: path.split("/"))
    if not texts:
        raise FailedPrecondition(
            f"{field}: no file in {uri} ends in {SUFFIXES_IN_WORDS}: put some there, or name another folder"
        )
    return [_file(field, filesystem, base, path, require_allowed) for path in texts]


def _expand(field: str, uri: str, filesystem: Any, root: str) -> tuple[str, list[str]]:
    """The paths that a URI stands for, and the folder that their names are relative to."""
    if filesystem.isdir(root):
        return root, filesystem.find(root)
    if filesystem.isfile(root):
        if not root.lower().endswith(SUFFIXES):
            raise InvalidRequest([(field, f"{uri} does not end in {SUFFIXES_IN_WORDS}")])
        return posixpath.dirname(root), [root]
    matches = list(_glob(filesystem, root)) if _GLOB_CHARACTERS.intersection(root) else []
    if not matches:
        raise NotFound(f"{field}: there is nothing at {uri}: correct the address", uri=uri)
    return _folder_before_glob(root), matches


def _glob(filesystem: Any, pattern: str) -> Iterator[str]:
    for path in filesystem.glob(pattern):
        if filesystem.isdir(path):
            yield from filesystem.find(path)
        else:
            yield path


def _folder_before_glob(pattern: str) -> str:
    parts = pattern.split("/")
    first = next(index for index, part in enumerate(parts) if _GLOB_CHARACTERS.intersection(part))
    return "/".join(parts[:first])


def _file(field: str, filesystem: Any, base: str, path: str, require_allowed: AllowCheck) -> TextFile:
    if not filesystem.isfile(path):
        # Such as a pipe, which would be waited for without end, or a link to nothing or to itself.
        raise FailedPrecondition(f"{field}: {path} is no file, nor a link to one: remove it, or name other files")
    uri = require_allowed(field, path if path.startswith("/") else filesystem.unstrip_protocol(path))
    # A file name of bytes that are no UTF-8 is legal on Linux, but no text.
    name = path[len(base) :].lstrip("/").encode("utf-8", "backslashreplace").decode()
    return TextFile(filesystem, path, uri, name, int(filesystem.size(path) or 0))
