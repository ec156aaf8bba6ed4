"""Compiles the hash-pinned requirement files from the pyproject files, or checks that they are current.

    python requirements/lock.py UV            write requirements/*.txt, keeping versions that still fit
    python requirements/lock.py UV --check    fail where a file is not what the pyproject files give
    python requirements/lock.py UV --upgrade  write them with the newest versions that fit

The files name no index and no download address. The workspace's own packages stay out: they are installed from
their folders.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("exporter", "tokenizer", "trainer", "registry")
MEMBERS = ("protos", "common", *SERVICES, "orchestration")
ORCHESTRATION = "orchestration/pyproject.toml"
CPU = (
    "requirements/tensorflow-cpu.in", "--override", "requirements/tensorflow-cpu.overrides",
    "--excludes", "requirements/tensorflow-cpu.excludes",
)  # fmt: skip
"""TensorFlow without kernels for GPUs, where there is such a wheel: 600 MB less in an image."""

LOCKS: dict[str, list[str]] = {
    "dev": [ORCHESTRATION, "--extra", "embedded", "--extra", "kubeflow", "--group", "dev"],
    "airflow": [ORCHESTRATION, "--extra", "airflow", "--excludes", "requirements/airflow.excludes"],
    "dashboard": [ORCHESTRATION, "--excludes", "requirements/dashboard.excludes"],
    "docs": ["--group", "docs"],
    "peers": ["--group", "peers"],
    **{service: [f"services/{service}/pyproject.toml"] for service in SERVICES},
    "registry": ["services/registry/pyproject.toml", "--excludes", "requirements/registry.excludes"],
    "trainer": ["services/trainer/pyproject.toml", *CPU],
    "trainer-gpu": ["services/trainer/pyproject.toml", "--extra", "gpu"],
}
"""Each file's name and what it is compiled from."""


def compile_lock(uv: str, name: str, target: Path, options: list[str]) -> None:
    """Compiles one file; versions already in the target are kept while they fit."""
    without_members = [option for member in MEMBERS for option in ("--no-emit-package", f"gpt2-{member}")]
    command = [
        uv, "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes",
        "--no-emit-index-url", "--no-header", "--no-annotate", *without_members, *options,
        "--output-file", str(target), *LOCKS[name],
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True)


def main(arguments: list[str]) -> int:
    """Runs the command; its exit status is the result."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    uv, *options = arguments
    if options != ["--check"]:
        for name in LOCKS:
            compile_lock(uv, name, ROOT / "requirements" / f"{name}.txt", options)
        return 0
    stale = []
    with tempfile.TemporaryDirectory() as temporary:
        for name in LOCKS:
            current = ROOT / "requirements" / f"{name}.txt"
            again = Path(shutil.copy(current, temporary))
            compile_lock(uv, name, again, [])
            if again.read_bytes() != current.read_bytes():
                stale.append(current.relative_to(ROOT))
    for path in stale:
        print(f"{path} is not what the pyproject files give: run `make lock`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
