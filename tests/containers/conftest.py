"""The compose file's stack on a container engine, once for all tests of this folder: `make test-containers`.

Without GPT2_TEST_CONTAINERS nothing here is collected: bringing it up takes minutes. An engine that already answers is
used as it is, with the images that the compose file names; where none does, one is started, with stand-ins for those.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from pymongo import MongoClient

from .engine import EngineError, default_engine
from .images import STAND_INS, build_images
from .project import Project
from .runs import COLLECTION, DATABASE, PIPELINE, SPECIFICATION

_FOLDER = Path(__file__).parent
WANTED = os.environ.get("GPT2_TEST_CONTAINERS", "")
collect_ignore_glob = [] if WANTED else ["test_*.py"]
PROJECT = "gpt2-test"
_OBJECT_STORE = "s3"
# The idle stack is measured before anything is done to it, and where artifacts are is changed last.
_ORDER = (
    *("first_run", "measures", "containment", "pages", "airflow"),
    *("killed_containers", "outages", "lifecycle", "object_store"),
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
    running_before = engine.answers()
    try:
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
    # Not in /tmp/pytest-of-…: the engine mounts files of it into containers with other users.
    folder = tmp_path_factory.mktemp("checkout")
    folder.chmod(0o755)
    made = Project(folder, {**engine_environment, "COMPOSE_PROJECT_NAME": PROJECT, "PIPELINES": "./pipelines"})
    made.copy_checkout()
    (folder / "pipelines").mkdir()
    (folder / "pipelines" / f"{PIPELINE}.yaml").write_text(SPECIFICATION)
    made.run("cp .env.example .env")
    made.compose("down", "--volumes", "--remove-orphans")
    made.compose("build", seconds=3000)
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
    password = stack.secret("mongodb_password")
    with MongoClient(f"mongodb://gpt2:{password}@localhost:27017/?authSource=admin") as client:
        collection = client[DATABASE][COLLECTION]
        collection.drop()
        collection.insert_many(
            {"_id": number, "text": f"{number} bottles of beer on the wall, {number} bottles. " * 30}
            for number in range(200)
        )


@pytest.fixture
def tell(capsys) -> Callable[[str], None]:
    """Prints a line, whatever pytest captures."""

    def line(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}", end="")

    return line


def _engine_of_the_machine() -> bool:
    if shutil.which("docker") is None:
        return False
    answers = [
        subprocess.run(["docker", *words], capture_output=True, timeout=30).returncode == 0
        for words in (["info"], ["compose", "version"])
    ]
    return all(answers)
