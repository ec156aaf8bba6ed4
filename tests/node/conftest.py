"""One node for all tests of this folder: `make test-node`, which runs them in separate namespaces.

Without GPT2_TEST_NODE nothing here is collected: building the programs and images of a node takes an hour.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster_programs import built_node_programs, built_programs
from tests.cluster.control_plane import ControlPlane
from tests.cluster.controllers import start_controller
from tests.cluster.deployment import Administrator

from .images import images_folder
from .node import ADDRESS, Node, prepare_network
from .services import NO_OVERLAY, Services

collect_ignore_glob = [] if os.environ.get("GPT2_TEST_NODE") else ["test_*.py"]
_FOLDER = Path(__file__).parent
_OVERLAYS = ("cpu", "trainjob", "s3", "trainjob-s3", "gpu", "multi-gpu", NO_OVERLAY)
_SMALL_MEGABYTES = 700
"""Of the volume that a test fills."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the tests of this folder by the overlay that they share, so that each is applied once."""

    def place(item: pytest.Item) -> int:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        return _OVERLAYS.index(parameters["services"]) if "services" in parameters else len(_OVERLAYS)

    own = [item for item in items if item.path.parent == _FOLDER]
    items[:] = [item for item in items if item not in own] + sorted(own, key=place)


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory) -> Iterator[ControlPlane]:
    """A control plane with the controllers of Kubeflow Trainer and JobSet, which are processes beside it."""
    programs = built_programs()
    assert programs is not None, "`make test-node` builds the programs"
    prepare_network()
    folder = tmp_path_factory.mktemp("control-plane")
    plane = ControlPlane(folder / "plane", programs, ADDRESS)
    try:
        plane.start()
        for name in programs.controllers:
            start_controller(name, folder / name, plane, programs)
        yield plane
    finally:
        plane.stop()


@pytest.fixture(scope="session")
def node(control_plane, tmp_path_factory) -> Iterator[Node]:
    """The node, ready."""
    programs = built_node_programs()
    assert programs is not None, "`make test-node` builds the programs"
    made = Node(tmp_path_factory.mktemp("node") / "node", control_plane, programs, images_folder())
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def administrator(control_plane, node, tmp_path_factory) -> Administrator:
    """Acts on the cluster."""
    return Administrator(control_plane, tmp_path_factory.mktemp("kustomizations"))


@pytest.fixture(scope="session")
def volumes_folder(tmp_path_factory) -> Path:
    """Where volumes lie: each user may pass through, as pods' users are others than that of the tests."""
    folder = tmp_path_factory.mktemp("volumes")
    for path in (folder, *folder.parents):
        if path.owner() == Path.home().owner() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o111)
    return folder


@pytest.fixture(scope="session")
def services(request, administrator, volumes_folder) -> Iterator[Services]:
    """The services of an overlay, ready, or all that they ask for. Tests name it by `parametrize`, and share it."""
    overlay = request.param
    services = Services(administrator, volumes_folder / overlay)
    try:
        services.prepare("s3" in overlay, _SMALL_MEGABYTES if overlay == "cpu" else 0)
        if overlay != NO_OVERLAY:
            services.apply(overlay)
        yield services
    finally:
        services.remove()
