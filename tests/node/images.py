"""The images of a node: those of this checkout, and the stand-ins of the servers, loaded into containerd once.

They are built by the engine of `tests/containers`; those that have changed since the last time are loaded.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from gpt2_orchestration.client.addresses import DEFAULT_PORTS
from tests.cluster.cluster_programs import cluster_cache
from tests.containers.engine import Engine, run
from tests.containers.images import STAND_INS, build_images

from .containerd import PAUSE_IMAGE, Containerd

_ROOT = Path(__file__).parents[2]
_BUILD_SECONDS = 3600
VERSION = version("gpt2-orchestration")
"""The tag of this checkout's images, as the manifests name them."""
_SERVERS = ("postgres", "kafka", "mongo", "s3")
# There is no GPU here: the image under that name is the one without CUDA.
_ALSO_NAMED = {"gpt2-trainer": "gpt2-trainer-gpu"}


def images_folder() -> Path:
    """containerd's folder."""
    return cluster_cache() / "images"


def load_images(engine: Engine) -> None:
    """Builds all, and loads what containerd lacks. Raises EngineError."""
    build_images(engine, ["python", *_SERVERS])
    names = [*_build_own(engine), PAUSE_IMAGE, *(item.image for item in STAND_INS if item.folder in _SERVERS)]
    ids = {name: _docker(engine, "image", "inspect", "--format", "{{.Id}}", name).strip() for name in names}
    folder = images_folder()
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "loaded.json"
    loaded = json.loads(record.read_text()) if record.exists() else {}
    missing = [name for name, found in ids.items() if loaded.get(name) != found]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as runtime:
        containerd = Containerd(folder, Path(runtime))
        try:
            containerd.start()
            containerd.load(["docker", "save", *missing], {**os.environ, **engine.environment})
        finally:
            containerd.stop()
    record.write_text(json.dumps(ids))


def _build_own(engine: Engine) -> Sequence[str]:
    names = []
    for service, port in DEFAULT_PORTS.items():
        names.append(f"gpt2-{service}:{VERSION}")
        arguments = ["--target", "service", "--build-arg", f"SERVICE={service}", "--build-arg", f"PORT={port}"]
        _docker(engine, "build", "--quiet", *arguments, "--tag", names[-1], str(_ROOT))
    names.append(f"gpt2-airflow:{VERSION}")
    arguments = ["--target", "orchestration", "--build-arg", "REQUIREMENTS=airflow"]
    _docker(engine, "build", "--quiet", *arguments, "--tag", names[-1], str(_ROOT))
    for name, other in _ALSO_NAMED.items():
        names.append(f"{other}:{VERSION}")
        _docker(engine, "tag", f"{name}:{VERSION}", names[-1])
    _docker(engine, "build", "--quiet", "--tag", PAUSE_IMAGE, str(Path(__file__).with_name("pause")))
    return names


def _docker(engine: Engine, *arguments: str) -> str:
    return run(["docker", *arguments], engine.environment, _BUILD_SECONDS)
