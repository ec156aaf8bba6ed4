"""Compiled programs of JAX in a folder that processes share.

JAX has a cache folder itself, but a process killed while writing leaves a truncated entry for good, and corrupt machine
code is not detected. So each process gives JAX a private folder, and entries are copied between it and the shared one
whole, each with its digest. (TensorFlow's cache is experimental, and warns of every entry.)
"""

import hashlib
import logging
import os
import platform
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from gpt2_trainer.model.backend import BackendName
from gpt2_trainer.model.processor import Processor

_log = logging.getLogger(__name__)
_DIGEST_BYTES = hashlib.sha256().digest_size
_UNFINISHED_SECONDS = 3600.0
_FOLDER_PREFIX, _PART_PREFIX = "jax-", ".part-"
_ENTRIES = "*-cache"
# A user who sets it decides where programs are kept.
_FOLDER_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


@dataclass(frozen=True, slots=True)
class CompileCacheOptions:
    """Where compiled programs are kept.

    Args:
        folder: Folder that processes share. Whoever can write to it can run code in them.
        max_bytes: Size limit of the folder; 0: nothing is kept.
    """

    folder: Path
    max_bytes: int


class CompileCache:
    """The programs of one process, which has not imported JAX yet.

    Args:
        options: Where they are kept.
        backend: What compiles; programs of TensorFlow are not kept.
        subject: What the programs have in common, such as the sizes of a model: only such entries are taken.
    """

    def __init__(self, options: CompileCacheOptions, backend: BackendName, subject: str) -> None:
        self._options = options
        self._shared = options.folder / _key(subject)
        self._working: Path | None = None
        self._known: set[str] = set()
        if options.max_bytes and backend == "jax" and _FOLDER_VARIABLE not in os.environ:
            try:
                self._working = Path(tempfile.mkdtemp(prefix="gpt2-compiled-"))
                self._fetch(self._working)
            except OSError as error:
                self._give_up(error)
            else:
                os.environ.update(_variables(self._working))

    def publish(self) -> int:
        """Copies new programs to the shared folder. Returns their number; warns at most once.

        Call it while nothing compiles.
        """
        if self._working is None:
            return 0
        try:
            new = [path for path in self._working.glob(_ENTRIES) if path.name not in self._known]
            if new:
                self._shared.mkdir(parents=True, exist_ok=True, mode=0o700)
                for path in new:
                    self._store(path)
                self._evict()
        except OSError as error:
            self._give_up(error)
            return 0
        return len(new)

    def _give_up(self, error: OSError) -> None:
        self._working = None
        _log.warning(
            "GPT2_COMPILE_CACHE_FOLDER: compiled programs cannot be kept in %s (%s), and each process compiles them "
            "again: make the folder writable, or set it to another one",
            self._options.folder,
            error,
        )

    def _fetch(self, working: Path) -> None:
        """Copies the entries of other processes to the private folder. Damaged ones are deleted, and compiled again."""
        if not self._shared.is_dir():
            return
        damaged = 0
        for path in self._shared.glob(_ENTRIES):
            content = b""
            with suppress(OSError):
                content = path.read_bytes()
            digest, program = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
            if hashlib.sha256(program).digest() != digest:
                damaged += 1
                with suppress(OSError):
                    path.unlink()
                continue
            (working / path.name).write_bytes(program)
            self._known.add(path.name)
            with suppress(OSError):
                # The time of last use: those used longest ago go first.
                os.utime(path)
        if damaged:
            _log.warning("%d compiled programs in %s are damaged: they are compiled again", damaged, self._shared)

    def _store(self, path: Path) -> None:
        program = path.read_bytes()
        descriptor, part = tempfile.mkstemp(prefix=_PART_PREFIX, dir=self._shared)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(program).digest() + program)
            Path(part).replace(self._shared / path.name)
            self._known.add(path.name)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise

    def _evict(self) -> None:
        """Deletes the least recently used entries of all subjects, until the folder is under its size limit."""
        # By their names, as other files may be in the folder, too.
        for part in self._options.folder.glob(f"{_FOLDER_PREFIX}*/{_PART_PREFIX}*"):
            with suppress(OSError):
                if time.time() - part.stat().st_mtime > _UNFINISHED_SECONDS:
                    part.unlink()
        entries = []
        for path in self._options.folder.glob(f"{_FOLDER_PREFIX}*/{_ENTRIES}"):
            # Another process may delete it at the same time.
            with suppress(OSError):
                found = path.stat()
                entries.append((found.st_mtime, found.st_size, path))
        excess = sum(size for _, size, _ in entries) - self._options.max_bytes
        for _, size, path in sorted(entries):
            if excess <= 0:
                return
            with suppress(OSError):
                path.unlink()
            excess -= size


def _key(subject: str) -> str:
    """Name of the folder of programs that this machine can run, and that have a subject in common."""
    packages = (f"{name} {version(name)}" for name in ("jax", "jaxlib"))
    processor = Processor.of_this_machine()
    # Code is made for so many cores.
    parts = [*packages, platform.machine(), " ".join(processor.features), str(processor.cores), subject]
    return _FOLDER_PREFIX + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _variables(folder: Path) -> dict[str, str]:
    """What makes JAX keep all that it compiles in a folder."""
    return {
        _FOLDER_VARIABLE: str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        # On GPUs their place would become part of the entries' names.
        "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",
    }
