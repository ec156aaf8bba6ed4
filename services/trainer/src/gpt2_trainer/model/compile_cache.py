"""Compiled programs in a folder that processes share.

JAX and TensorFlow have cache folders themselves, but a process killed while writing leaves a truncated entry for good,
and corrupt machine code is not detected. So each process gives its backend a private folder, and entries are copied
between it and the shared one whole, each with its digest.
"""

import hashlib
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpt2_trainer.model.backend import BackendName, installed_version
from gpt2_trainer.model.processor import Processor

_log = logging.getLogger(__name__)
_DIGEST_BYTES = hashlib.sha256().digest_size
_UNFINISHED_SECONDS = 3600.0
_PART_PREFIX = ".part-"
_JAX_FOLDER = "JAX_COMPILATION_CACHE_DIR"
_TENSORFLOW_FLAGS = "TF_XLA_FLAGS"
_TENSORFLOW_FOLDER = "--tf_xla_persistent_cache_directory"


@dataclass(frozen=True, slots=True)
class CompileCacheOptions:
    """Where compiled programs are kept.

    Args:
        folder: Folder that processes share. Whoever can write to it can run code in them.
        max_bytes: Size limit of the folder; 0: nothing is kept.
    """

    folder: Path
    max_bytes: int


@dataclass(frozen=True, slots=True)
class _Backend:
    """How a backend keeps programs in a folder of one process."""

    prefix: str
    """Of the names of shared folders."""
    entries: str
    """Pattern of its files' names."""
    packages: tuple[str, ...]
    """What the programs depend on."""
    is_users: Callable[[], bool]
    """Whether a user decides by a variable where programs are kept."""
    variables: Callable[[Path], Mapping[str, str]]
    """What makes it keep all that it compiles in a folder."""


class CompileCache:
    """The programs of one process, which has not imported its backend yet.

    Args:
        options: Where they are kept.
        backend: What compiles.
        subject: What the programs have in common, such as the sizes of a model: only such entries are taken.
        keep_tensorflow: Keep programs of TensorFlow, too. Its cache is experimental: training steps on CPUs were found
            to compute the same with it.
    """

    def __init__(
        self, options: CompileCacheOptions, backend: BackendName, subject: str, *, keep_tensorflow: bool = False
    ) -> None:
        self._options = options
        self._backend = _BACKENDS[backend]
        self._shared = options.folder / _key(self._backend, subject)
        self._working: Path | None = None
        self._known: set[str] = set()
        is_kept = backend == "jax" or keep_tensorflow
        if options.max_bytes and is_kept and not self._backend.is_users():
            try:
                self._working = Path(tempfile.mkdtemp(prefix="gpt2-compiled-"))
                self._fetch(self._working)
            except OSError as error:
                self._give_up(error)
            else:
                os.environ.update(self._backend.variables(self._working))

    def publish(self) -> int:
        """Copies new programs to the shared folder. Returns their number; warns at most once.

        Call it while nothing compiles.
        """
        if self._working is None:
            return 0
        try:
            new = [path for path in self._working.glob(self._backend.entries) if path.name not in self._known]
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
        for path in self._shared.glob(self._backend.entries):
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
        for part in self._find(_PART_PREFIX + "*"):
            with suppress(OSError):
                if time.time() - part.stat().st_mtime > _UNFINISHED_SECONDS:
                    part.unlink()
        entries = []
        for path in self._find():
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

    def _find(self, pattern: str = "") -> list[Path]:
        """Files of all backends and subjects: the entries, or those of a pattern."""
        return [
            path
            for backend in _BACKENDS.values()
            for path in self._options.folder.glob(f"{backend.prefix}*/{pattern or backend.entries}")
        ]


def _key(backend: _Backend, subject: str) -> str:
    """Name of the folder of programs that this machine can run, and that have a subject in common."""
    packages = (f"{name} {installed_version(name)}" for name in backend.packages)
    processor = Processor.of_this_machine()
    # Code is made for so many cores. TensorFlow's entries do not know the options that they were compiled with.
    flags = (os.environ.get(name, "") for name in ("XLA_FLAGS", _TENSORFLOW_FLAGS))
    parts = [*packages, platform.machine(), " ".join(processor.features), str(processor.cores), *flags, subject]
    return backend.prefix + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _jax_variables(folder: Path) -> dict[str, str]:
    return {
        _JAX_FOLDER: str(folder),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        # On GPUs their place would become part of the entries' names.
        "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",
    }


def _tensorflow_variables(folder: Path) -> dict[str, str]:
    flags = (os.environ.get(_TENSORFLOW_FLAGS, ""), f"{_TENSORFLOW_FOLDER}={folder}")
    return {
        _TENSORFLOW_FLAGS: " ".join(filter(None, flags)),
        # It logs as errors that it looks for two formats of an entry, and XLA that its hints are no CPU features.
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "3"),
    }


_BACKENDS: Mapping[BackendName, _Backend] = {
    "jax": _Backend(
        prefix="jax-",
        entries="*-cache",
        packages=("jax", "jaxlib"),
        is_users=lambda: _JAX_FOLDER in os.environ,
        variables=_jax_variables,
    ),
    "tensorflow": _Backend(
        prefix="tensorflow-",
        entries="*.pb",
        packages=("tensorflow", "tensorflow-cpu"),
        is_users=lambda: _TENSORFLOW_FOLDER in os.environ.get(_TENSORFLOW_FLAGS, ""),
        variables=_tensorflow_variables,
    ),
}
