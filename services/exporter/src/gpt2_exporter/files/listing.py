"""Lists the files of the URIs of a request, in an order that depends on names alone.

Counts the other files in a folder: those of other types, and hidden ones.
"""

import posixpath
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from gpt2_common.artifacts.roots import filesystem_of
from gpt2_common.errors import FailedPrecondition, InvalidRequest, NotFound
from gpt2_common.escaping import escape_surrogates

COMPRESSIONS = (".gz", ".zst")
PARQUET = ".parquet"
_BARE_SUFFIXES = (".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", PARQUET)
SUFFIXES = (*_BARE_SUFFIXES, *(suffix + end for suffix in _BARE_SUFFIXES for end in COMPRESSIONS))
SUFFIXES_IN_WORDS = "one of .txt, .md, .csv, .tsv, .json, .jsonl or .parquet, also with .gz or .zst after it"
HIDDEN = "hidden"
NO_SUFFIX = "no suffix"
_MAX_SHOWN_SUFFIXES = 10
_GLOB_CHARACTERS = frozenset("*[")

AllowCheck = Callable[[str, str], str]
"""Takes a request's field and a URI; returns the URI normalised, or raises InvalidRequest when it is not allowed."""


@dataclass(frozen=True, slots=True)
class TextFile:
    """One file to read."""

    filesystem: Any
    """The fsspec file system of the file."""
    path: str
    """Path in that file system."""
    uri: str
    """Its URI, normalised."""
    name: str
    """Path relative to the folder in the request; the file's own name where the request names the file."""
    size: int
    """Bytes."""

    @property
    def compression(self) -> str:
        """The suffix of its compression; empty for none."""
        return _compression_of(self.path)

    @property
    def suffix(self) -> str:
        """The suffix of its format, before that of compression, in lower case."""
        return suffix_of(self.path)


def suffix_of(path: str) -> str:
    """Returns the suffix of the format of a path or URI, before that of compression, in lower case."""
    return posixpath.splitext(path[: len(path) - len(_compression_of(path))])[1].lower()


def _compression_of(path: str) -> str:
    end = posixpath.splitext(path)[1].lower()
    return end if end in COMPRESSIONS else ""


@dataclass(frozen=True, slots=True)
class FileListing:
    """The files of the URIs of a request."""

    files: Sequence[TextFile]
    """The files to read, in order."""
    skipped: Mapping[str, int]
    """Number of other files in folders and globs, by suffix, `HIDDEN` or `NO_SUFFIX`."""


def list_files(uris: Sequence[str], require_allowed: AllowCheck) -> FileListing:
    """Lists the files.

    Args:
        uris: Folders, files or globs, as the request has them.
        require_allowed: Checks each URI, and each file found, against the allowed roots; links are followed first.

    Returns:
        The files, each once, in the order of the URIs and within a folder of names; and the counts of skipped files.

    Raises:
        InvalidRequest: A URI or a file is outside the roots, or a URI names a file of another type.
        NotFound: There is nothing at a URI.
        FailedPrecondition: There is no file to read in a folder, or an entry with a file's name is not a file.
    """
    found: dict[str, TextFile] = {}
    skipped: dict[str, str] = {}
    for index, uri in enumerate(uris):
        field = f"uris[{index}]"
        for file in _list(field, require_allowed(field, uri), require_allowed, skipped):
            found.setdefault(file.uri, file)
    read = {file.path for file in found.values()}
    left = [kind for path, kind in skipped.items() if path not in read]
    return FileListing(list(found.values()), _by_count(left))


def describe_skipped(counts: Mapping[str, int]) -> str:
    """Describes skipped files for a message, empty for none; such as `12 files of other types (.pdf 10, .docx 2)`."""
    others = {suffix: count for suffix, count in counts.items() if suffix != HIDDEN}
    shown = [f"{suffix} {count}" for suffix, count in list(others.items())[:_MAX_SHOWN_SUFFIXES]]
    shown += ["..."] if len(others) > _MAX_SHOWN_SUFFIXES else []
    total, hidden = sum(others.values()), counts.get(HIDDEN, 0)
    parts = [f"{_files(total)} of other types ({', '.join(shown)})"] if total else []
    return " and ".join([*parts, f"{_files(hidden, 'hidden ')}"] if hidden else parts)


def _by_count(kinds: Iterable[str]) -> dict[str, int]:
    """Returns the number of each, the most frequent first."""
    return dict(sorted(Counter(kinds).items(), key=lambda item: (-item[1], item[0])))


def _files(count: int, kind: str = "") -> str:
    return f"{count} {kind}file{'' if count == 1 else 's'}"


def _list(field: str, uri: str, require_allowed: AllowCheck, skipped: dict[str, str]) -> list[TextFile]:
    """Returns the files of one URI; adds the skipped ones to `skipped`, by path."""
    filesystem, root = filesystem_of(uri)
    base, paths = _expand(field, uri, filesystem, root.rstrip("/"))
    named = {part for part in root[len(base) :].split("/") if part.startswith(".")}
    # In object stores a name that ends with a slash is a folder.
    kinds = {path: _skip_reason(path, base, named) for path in paths if not path.endswith("/")}
    skipped.update({path: kind for path, kind in kinds.items() if kind})
    texts = sorted((path for path, kind in kinds.items() if not kind), key=lambda path: path.split("/"))
    if not texts:
        counts = _by_count([kind for kind in kinds.values() if kind])
        found = f", but there are {describe_skipped(counts)}" if counts else ""
        hidden = ", or the hidden files themselves" if HIDDEN in counts else ""
        raise FailedPrecondition(
            f"{field}: no file in {uri} ends in {SUFFIXES_IN_WORDS}{found}: "
            f"put some there, or name another folder{hidden}"
        )
    return [_file(field, filesystem, base, path, require_allowed) for path in texts]


def _skip_reason(path: str, base: str, named: Collection[str]) -> str:
    """Returns why a file is skipped: `HIDDEN` unless the URI names the hidden part, or its suffix; else empty."""
    parts = path[len(base) :].lstrip("/").split("/")
    for part in parts:
        if part.startswith(".") and part not in named and not any(fnmatchcase(part, pattern) for pattern in named):
            return HIDDEN
    if path.lower().endswith(SUFFIXES):
        return ""
    name, suffix = posixpath.splitext(parts[-1])
    inner = posixpath.splitext(name)[1] if suffix.lower() in COMPRESSIONS else ""
    return escape_surrogates((inner + suffix).lower()) or NO_SUFFIX


def _expand(field: str, uri: str, filesystem: Any, root: str) -> tuple[str, list[str]]:
    """Returns the paths that a URI matches, and the folder that their names are relative to."""
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
        # Such as a pipe, which would block forever, or a broken or circular link.
        raise FailedPrecondition(f"{field}: {path} is neither a file nor a link to one: remove it, or name other files")
    uri = require_allowed(field, path if path.startswith("/") else filesystem.unstrip_protocol(path))
    # Linux allows names that are not UTF-8, which are not text.
    name = escape_surrogates(path[len(base) :].lstrip("/"))
    return TextFile(filesystem, path, uri, name, int(filesystem.size(path) or 0))
