"""For tests that start their own servers: a port, waiting, and looking for secrets in what servers keep."""

import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

Found = TypeVar("Found")


def wait_for(condition: Callable[[], Found], seconds: float, pause: float = 0.2) -> Found:
    """Waits until a condition, which is asked after each pause in seconds, gives something true, and returns that."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(pause)
    return found


def holders(secrets: Iterable[str], folder: Path) -> list[str]:
    """Which files below a folder hold a secret."""
    needles = [secret.encode() for secret in secrets]
    return [
        f"{path}: {needle.decode()}"
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
        for content in [path.read_bytes()]
        for needle in needles
        if needle in content
    ]


def database_dump(url: str) -> str:
    """All that a PostgreSQL database holds, as text."""
    program = max(Path("/usr/lib/postgresql").glob("*/bin/pg_dump"))
    return subprocess.run([program, "--dbname", url], check=True, capture_output=True, text=True, timeout=120).stdout
