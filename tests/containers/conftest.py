"""The compose file's stack on a container engine, once for all tests of this folder: `make test-containers`.

Without GPT2_TEST_CONTAINERS nothing here is collected: bringing it up takes minutes. An engine that already answers is
used as it is, with the images that the compose file names; where none does, one is started, with stand-ins for those.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from .engine import EngineError, default_engine
from .images import STAND_INS, build_images
from .project import Project, follow_how_to
from .runs import insert_documents

_FOLDER = Path(__file__).parent
WANTED = os.environ.get("GPT2_TEST_CONTAINERS", "")
collect_ignore_glob = [] if WANTED else ["test_*.py"]
PROJECT = "gpt2-test"
_OBJECT_STORE = "s3"
# The idle stack is measured before anything is done to it, and where artifacts are is changed last.
_ORDER = (
    *("first_run", "measures", "containment", "pages", "airflow"),
    *("killed_containers", "outages", "lifecycle", "object_store", "upgrade"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the tests of this folder."""
    own = {item: _ORDER.index(item.path.stem.removeprefix("test_")) for item in items if item.path.parent == _FOLDER}
    items.sort(key=lambda item: own.get(item, -1))


@pytest.fixture(scope="session")
def engine_environment() -> Iterator[Mapping[str, str]]:
    """What the clients of the engine need, and the names of images where stand-ins are used."""
    engine = default_engine()
    if os.environ.get("DOCKER_HOST") != engine.environment["DOCKER_HOST"] and _engine_of_the_machine():
        yield {}
        return
    try:
        running_before = engine.answers()
        engine.start()
        build_images(engine, [item.folder for item in STAND_INS if item.folder != _OBJECT_STORE])
    except EngineError as error:
        pytest.skip(f"no container engine: {error}")
    images = {item.variable: item.image for item in STAND_INS}
    yield {**engine.environment, **images, "S3_CLIENT_IMAGE": images["S3_IMAGE"]}
    if not running_before:
        engine.stop()


@pytest.fixture(scope="session")
def object_store_image(engine_environment) -> None:
    """The image of an S3 server, which few tests need."""
    if engine_environment:
        build_images(default_engine(), [_OBJECT_STORE])


@pytest.fixture(scope="session")
def project(engine_environment, tmp_path_factory) -> Iterator[Project]:
    """The stack, built and up, in a folder where only the README has been followed."""
    made = follow_how_to(PROJECT, engine_environment, tmp_path_factory.mktemp("checkout"), Project.copy_checkout)
    made.compose("down", "--volumes", "--remove-orphans")
    yield made
    if WANTED != "keep":
        made.compose("down", "--volumes", "--remove-orphans")


@pytest.fixture(scope="session")
def stack(project) -> Project:
    """The stack, when all of it is healthy."""
    project.up()
    return project


@pytest.fixture(scope="session")
def documents(stack) -> None:
    """Texts in the stack's MongoDB."""
    insert_documents(stack.secret("mongodb_password"))


def _engine_of_the_machine() -> bool:
    if shutil.which("docker") is None:
        return False
    answers = [
        subprocess.run(["docker", *words], capture_output=True, timeout=30).returncode == 0
        for words in (["info"], ["compose", "version"])
    ]
    return all(answers)
