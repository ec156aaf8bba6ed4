"""Images that stand in for those of the compose file, under their names, where no image registry can be reached.

    python -m tests.containers.images [NAME…]    builds them all, or those of these folders

Each is made of packages of Debian, PyPI, Maven Central and Go by the Dockerfile in `images/NAME`, in the engine of
`engine.py`. One that is there and made of the same files is not built again.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .engine import Engine, EngineError, default_engine, run

_FOLDER = Path(__file__).with_name("images")
_SECONDS = 1200
_LABEL = "gpt2.stand-in"
_DEBIAN = "debian:bookworm-slim"


@dataclass(frozen=True)
class StandIn:
    """An image of a folder.

    Attributes:
        folder: Its name below `images`.
        image: The name that it stands in for.
        variable: What names another image in the compose file or a build, as a digest there fits no stand-in.
        base: The folder of the stand-in that it is made from; empty for Debian.
        prepare: Puts into the build's folder what the Dockerfile copies and the folder lacks.
    """

    folder: str
    image: str
    variable: str
    base: str
    prepare: Callable[[Path], None]


def _nothing(_: Path) -> None:
    pass


def _certificates(context: Path) -> None:
    bundle = os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
    shutil.copyfile(bundle, context / "host.crt")


def _kafka(context: Path) -> None:
    if shutil.which("mvn") is None:
        raise EngineError("Kafka's jars need Maven")
    pom = str(context / "pom.xml")
    command = ["mvn", "--batch-mode", "--quiet", "--file", pom, "dependency:copy-dependencies"]
    run([*command, f"-DoutputDirectory={context / 'libs'}"], {}, _SECONDS)


def _ferretdb(context: Path) -> None:
    if shutil.which("go") is None:
        raise EngineError("FerretDB needs Go")
    module = "github.com/FerretDB/FerretDB@v1.24.0"
    found = json.loads(run(["go", "mod", "download", "-json", module], {}, _SECONDS, Path("/")))
    # A copy, as the module lacks the file of its version, which it embeds, and is write-protected.
    source = context / "source"
    shutil.copytree(found["Dir"], source, ignore=shutil.ignore_patterns("website", "integration"))
    run(["chmod", "--recursive", "u+w", str(source)], {}, 60)
    (source / "build" / "version" / "version.txt").write_text("v1.24.0\n")
    command = [
        "go",
        "build",
        "-trimpath",
        "-tags",
        "ferretdb_sqlite",
        "-o",
        str(context / "ferretdb"),
        "./cmd/ferretdb",
    ]
    run(command, {"CGO_ENABLED": "0"}, _SECONDS, source)
    shutil.rmtree(source)


STAND_INS = (
    StandIn("python", "python:3.11-slim-bookworm", "PYTHON_IMAGE", "", _certificates),
    StandIn("postgres", "postgres:17.6-bookworm", "POSTGRES_IMAGE", "", _nothing),
    StandIn("kafka", "apache/kafka:4.1.0", "KAFKA_IMAGE", "", _kafka),
    StandIn("mongo", "mongo:8.0.13", "MONGODB_IMAGE", "", _ferretdb),
    StandIn("s3", "gpt2-test-s3", "S3_IMAGE", "python", _nothing),
)


def build_images(engine: Engine, names: Sequence[str] = ()) -> None:
    """Builds what is missing, side by side where they do not need each other. Raises EngineError."""
    wanted = [item for item in STAND_INS if not names or item.folder in names]
    bases = {item.base for item in wanted}
    if _image_label(engine, _DEBIAN) is None:
        _import_debian(engine)
    for item in STAND_INS:
        if item.folder in bases:
            _build(engine, item)
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(lambda item: _build(engine, item), [item for item in wanted if item.folder not in bases]):
            pass


def _image_label(engine: Engine, image: str) -> str | None:
    """The label of an image; empty where it has none, None where it is not there."""
    command = ["docker", "image", "inspect", "--format", f'{{{{index .Config.Labels "{_LABEL}"}}}}', image]
    done = subprocess.run(command, env={**os.environ, **engine.environment}, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _import_debian(engine: Engine) -> None:
    if shutil.which("mmdebstrap") is None:
        environment = {"DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "update", "--quiet=2"], {}, _SECONDS)
        run(
            ["apt-get", "install", "--quiet=2", "--yes", "--no-install-recommends", "mmdebstrap"], environment, _SECONDS
        )
    with _folder_in_memory() as folder:
        archive = str(folder / "debian.tar")
        command = [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            "--include=ca-certificates",
            "--dpkgopt=force-unsafe-io",
        ]
        unread = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "locale", "man")]
        run([*command, *unread, "bookworm", archive], {"TMPDIR": str(folder)}, _SECONDS)
        run(["docker", "import", "--change", 'CMD ["bash"]', archive, _DEBIAN], engine.environment, _SECONDS)


def _build(engine: Engine, item: StandIn) -> None:
    base = next((other.image for other in STAND_INS if other.folder == item.base), _DEBIAN)
    digest = hashlib.sha256((_image_label(engine, base) or "").encode())
    source = _FOLDER / item.folder
    for path in sorted(source.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(source)).encode() + b"\0" + path.read_bytes())
    label = digest.hexdigest()[:16]
    if _image_label(engine, item.image) == label:
        return
    with _folder_in_memory() as folder:
        context = folder / "context"
        shutil.copytree(source, context)
        item.prepare(context)
        command = ["docker", "build", "--progress", "plain", "--label", f"{_LABEL}={label}", "--tag", item.image]
        run([*command, str(context)], engine.environment, _SECONDS)


@contextlib.contextmanager
def _folder_in_memory() -> Iterator[Path]:
    """A folder that is gone afterwards; on the file system in memory, where there is one."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def main() -> None:
    engine = default_engine()
    try:
        engine.start()
        build_images(engine, sys.argv[1:])
    except EngineError as error:
        sys.exit(f"the stand-ins cannot be made: {error}")


if __name__ == "__main__":
    main()
