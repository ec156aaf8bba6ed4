"""The manifest of an artifact: what it is, what made it, and every file with its size and SHA-256."""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from gpt2_common.errors import DataLoss, FailedPrecondition

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
_BLOCK = 1 << 20
_FILES_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file: path relative to the artifact, size in bytes, SHA-256 in lower-case hexadecimal."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Parent:
    """An artifact that this one was made from."""

    kind: str
    uri: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `manifest.json`."""

    kind: str
    files: tuple[FileEntry, ...]
    producer: Mapping[str, str] = field(default_factory=dict)
    """What made it: service, service_version, job_id, run_id, request_digest, time, git_revision, python, platform."""
    parents: tuple[Parent, ...] = ()
    counts: Mapping[str, float] = field(default_factory=dict)
    """What is in it, by unit."""
    properties: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 over kind, format version and files: the same content has the same digest, whoever made it."""
        files = [[entry.path, entry.size, entry.sha256] for entry in sorted(self.files, key=lambda entry: entry.path)]
        content = json.dumps([self.kind, FORMAT_VERSION, files], separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        content = {
            "format": "gpt2-artifact",
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "digest": self.digest,
            "producer": dict(self.producer),
            "parents": [{"kind": p.kind, "uri": p.uri, "digest": p.digest} for p in self.parents],
            "counts": dict(self.counts),
            "properties": dict(self.properties),
            "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in self.files],
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> "Manifest":
        """Reads a manifest.

        Args:
            text: Content of `manifest.json`.
            where: The artifact's URI, for errors.

        Raises:
            DataLoss: It is no manifest, or its digest does not fit its files.
            FailedPrecondition: It is of a later format version.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            version = content["format_version"]
            if version != FORMAT_VERSION:
                raise FailedPrecondition(
                    f"{where} has artifact format version {version!r}, and this release reads version "
                    f"{FORMAT_VERSION}: update the service, or make the artifact again"
                )
            manifest = cls(
                kind=str(content["kind"]),
                files=tuple(FileEntry(_safe(f["path"]), int(f["size"]), str(f["sha256"])) for f in content["files"]),
                producer=content["producer"],
                parents=tuple(Parent(p["kind"], p["uri"], p["digest"]) for p in content["parents"]),
                counts=content["counts"],
                properties=content["properties"],
            )
            recorded = content["digest"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataLoss(f"{where}/{MANIFEST_NAME} is damaged ({error}): make the artifact again") from error
        if manifest.digest != recorded:
            raise DataLoss(f"{where}/{MANIFEST_NAME} was changed after it was written: make the artifact again")
        return manifest


def _safe(path: str) -> str:
    """Returns a file's path as it is. Raises ValueError when it leads out of the artifact."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\0" in path:
        raise ValueError(f"unsafe file path {path!r}")
    return path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in lower-case hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def scan(folder: Path, hashed: Mapping[Path, FileEntry]) -> tuple[FileEntry, ...]:
    """Lists every file below a folder but the manifest, in the order of paths.

    Args:
        folder: The folder.
        hashed: Files that have been hashed already; those of another size now are hashed again.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_NAME)

    def entry(path: Path) -> FileEntry:
        known = hashed.get(path)
        return known if known and known.size == path.stat().st_size else entry_of(path, folder)

    with ThreadPoolExecutor(_FILES_AT_ONCE, "hash") as pool:
        return tuple(pool.map(entry, paths))


def entry_of(path: Path, folder: Path) -> FileEntry:
    """The entry of a file in a folder; reads it whole."""
    return FileEntry(path.relative_to(folder).as_posix(), path.stat().st_size, sha256_of(path))
