"""Programs that tests use and that Go builds: once, kept in `.tools/go` for later runs and for all workers of a run."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

HELM = "helm.sh/helm/v3/cmd/helm@v3.19.5"
_FOLDER = Path(__file__).resolve().parents[3] / ".tools" / "go"
_SECONDS = 800


def install_go_program(package: str) -> Path:
    """Builds a program of a public module, such as `example.org/tool/cmd/tool@v1.2.3`. Skips the test without Go."""
    path, _, version = package.partition("@")
    names = [part for part in path.split("/") if part not in ("v2", "v3", "v4", "v5")]
    return _build(names[-1], version, ["go", "install", package])


def build_go_program(source: Path, name: str, *options: str) -> Path:
    """Builds the program of a folder. Skips the test without Go."""
    digest = hashlib.sha256(repr(options).encode())
    for path in sorted(source.iterdir()):
        digest.update(path.read_bytes())
    return _build(name, digest.hexdigest()[:16], ["go", "build", *options, "-o", f"{_unfinished(name)}/", "."], source)


def _build(name: str, version: str, command: list[str], source: Path | None = None) -> Path:
    if not shutil.which("go"):
        pytest.skip(f"needs Go, to build {name}")
    folder = _FOLDER / f"{name}-{version}"
    _FOLDER.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(name)
    with (_FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            environment = {**os.environ, "CGO_ENABLED": "0", "GOBIN": str(unfinished)}
            subprocess.run(command, cwd=source or "/", env=environment, check=True, timeout=_SECONDS)
            unfinished.rename(folder)
    return folder / name


def _unfinished(name: str) -> Path:
    return _FOLDER / f"{name}.part"
