"""Generates the committed stubs from the .proto sources, and checks both.

    python protos/build.py generate            write src/gpt2 anew
    python protos/build.py check               fail where src/gpt2 is not what the sources give
    python protos/build.py lint                buf lint, STANDARD and COMMENTS
    python protos/build.py breaking BASE       buf breaking against the sources at a git revision

The proto packages and the Python packages have the same names, so nothing rewrites imports. google/rpc is compiled
against, not generated: its sources and stubs come with googleapis-common-protos.
"""

import filecmp
import shutil
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from google.rpc import status_pb2

PROTOS = Path(__file__).parent
STUBS = PROTOS / "src" / "gpt2"
BIN = Path(sys.executable).parent
_PACKAGE = '''"""Stubs generated from protos/gpt2. Other distributions can add services below this package."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
'''


def includes() -> list[str]:
    """Folders that imports in our sources are looked up in."""
    return [str(files("grpc_tools") / "_proto"), str(Path(status_pb2.__file__).parents[2])]


def protoc(sources: Path, *arguments: str) -> None:
    """Runs protoc over every source below a folder. Raises CalledProcessError when one does not compile."""
    names = sorted(str(path.relative_to(sources)) for path in (sources / "gpt2").rglob("*.proto"))
    paths = [f"-I{folder}" for folder in [str(sources), *includes()]]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *paths, *arguments, *names], check=True)


def generate(target: Path) -> None:
    """Writes the package of stubs into an empty folder."""
    # The plugins are named by path, as this environment need not be on the PATH.
    plugins = [f"--plugin={name}={BIN / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    for flag in ("python_out=", "grpc_python_out=", "mypy_out=quiet:", "mypy_grpc_out=quiet:"):
        protoc(PROTOS, *plugins, f"--{flag}{target}")
    package = target / "gpt2"
    for folder in [package, *(path for path in package.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").touch()
    (package / "__init__.py").write_text(_PACKAGE)
    # Services alone have gRPC stubs; for other files the plugin writes empty ones.
    for stub in package.rglob("*_pb2_grpc.py"):
        if not stub.stem.endswith("_service_pb2_grpc"):
            stub.unlink()
            stub.with_suffix(".pyi").unlink(missing_ok=True)
    (package / "py.typed").touch()


def differences(comparison: filecmp.dircmp[str], prefix: str = "") -> list[str]:
    """Paths at which two folders differ, Python's caches left out."""
    here = [*comparison.left_only, *comparison.right_only, *comparison.diff_files]
    below = [path for name, sub in comparison.subdirs.items() for path in differences(sub, f"{prefix}{name}/")]
    return [prefix + name for name in here if name != "__pycache__"] + below


def check() -> int:
    """Says which committed stubs are stale; 0 when none is."""
    with tempfile.TemporaryDirectory() as temporary:
        generate(Path(temporary))
        stale = differences(filecmp.dircmp(STUBS, Path(temporary) / "gpt2"))
    for path in stale:
        print(f"protos/src/gpt2/{path} is not what the sources give: run `make protos`", file=sys.stderr)
    return 1 if stale else 0


def image(sources: Path, target: Path) -> Path:
    """Compiles sources with their comments into a descriptor set that buf reads, imports included."""
    protoc(sources, f"--descriptor_set_out={target}", "--include_imports", "--include_source_info")
    return target


def buf(*arguments: str) -> int:
    """Runs buf with this folder's configuration."""
    command = [str(BIN / "buf"), *arguments, "--config", str(PROTOS / "buf.yaml")]
    return subprocess.run(command, check=False).returncode


def lint() -> int:
    """Lints the sources."""
    with tempfile.TemporaryDirectory() as temporary:
        return buf("lint", str(image(PROTOS, Path(temporary) / "image.binpb")))


def breaking(base: str) -> int:
    """Compares the sources with those at a git revision; a revision without sources breaks nothing."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        archive = subprocess.run(
            ["git", "archive", base, "protos/gpt2"], cwd=PROTOS.parent, capture_output=True, check=False
        )
        if archive.returncode:
            print(f"no sources at {base}: nothing to compare with")
            return 0
        subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
        before = image(folder / "protos", folder / "before.binpb")
        return buf("breaking", str(image(PROTOS, folder / "now.binpb")), "--against", str(before))


def main(arguments: list[str]) -> int:
    """Runs one command; its exit status is the result."""
    match arguments:
        case ["generate"]:
            shutil.rmtree(STUBS, ignore_errors=True)
            STUBS.parent.mkdir(parents=True, exist_ok=True)
            generate(STUBS.parent)
            return 0
        case ["check"]:
            return check()
        case ["lint"]:
            return lint()
        case ["breaking", base]:
            return breaking(base)
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
