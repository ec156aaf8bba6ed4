"""Atomic, durable writes: a file is written beside its place, synced, and renamed last."""

import os
from pathlib import Path


def write_durable(path: Path, content: str | bytes) -> None:
    """Replaces a file atomically: readers, and a restart after a crash, see the old content or the new.

    Args:
        path: The file.
        content: Its content; text is written as UTF-8.
    """
    part = part_of(path)
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    replace_durable(part, path)


def part_of(path: Path) -> Path:
    """Where a file is written before it has its name; a crash can leave it behind."""
    return path.with_name(f".{path.name}.part")


def replace_durable(part: Path, path: Path) -> None:
    """Gives a finished file, or a folder whose files are synced, its name, with its content on the disk before."""
    sync(part)
    part.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
