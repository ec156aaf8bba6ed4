"""A cluster with Kubeflow Trainer, whose nodes are stand-ins."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .cluster_programs import built_programs
from .control_plane import ControlPlane
from .controllers import start_controller
from .deployment import Administrator
from .kubelet import Kubelet
from .pod import Image, Pod

TRAINER_IMAGE = "registry.example.com/gpt2-trainer-gpu"
"""The image of trainings, the one that the nodes have."""
_VOLUMES_OF_AN_OVERLAY = 5


class Cluster(Administrator):
    """A running cluster.

    Attributes:
        node: The node that it begins with.
        nodes: All nodes that there ever were.

    Args:
        control_plane: Its API and its programs.
        node: The node that it begins with.
        folder: Where its files lie.
    """

    def __init__(self, control_plane: ControlPlane, node: Kubelet, folder: Path) -> None:
        super().__init__(control_plane, folder)
        self.node = node
        self.nodes = [node]

    def create_volumes(self, namespace: str) -> None:
        """Creates volumes for the claims of an overlay."""
        modes = ["ReadWriteOnce", "ReadWriteMany"]
        for number in range(_VOLUMES_OF_AN_OVERLAY):
            spec = {"capacity": {"storage": "1Ti"}, "accessModes": modes, "hostPath": {"path": str(self._folder)}}
            metadata = {"name": f"{namespace}-{number}"}
            self.control_plane.api.create("/api/v1/persistentvolumes", {"metadata": metadata, "spec": spec})

    @contextmanager
    def second_node(self, name: str) -> Iterator[Kubelet]:
        """Adds a node for a time."""
        node = Kubelet(name, self._folder / name, self.control_plane, self.node.images)
        self.nodes.append(node)
        node.start()
        try:
            yield node
        finally:
            node.stop()
            self.control_plane.kubectl("delete", "node", name, "--ignore-not-found")

    def training_pods(self, trainjob: str) -> list[Pod]:
        """All pods of a TrainJob that nodes ever had, those of one node the oldest first."""
        return [pod for node in self.nodes for pod in node.seen if pod.name.startswith(f"{trainjob}-node-")]


@contextmanager
def running_cluster(folder: Path, trainer: Image) -> Iterator[Cluster]:
    """Runs a cluster of one node. Skips the test where its programs have not been built."""
    programs = built_programs()
    if programs is None:
        pytest.skip("needs Kubernetes' programs: `make cluster-programs` builds them once")
    control_plane = ControlPlane(folder / "control-plane", programs)
    try:
        control_plane.start()
        for name in programs.controllers:
            start_controller(name, folder / name, control_plane, programs)
        node = Kubelet("node-1", folder / "node-1", control_plane, {TRAINER_IMAGE: trainer})
        node.start()
        try:
            yield Cluster(control_plane, node, folder)
        finally:
            node.stop()
    finally:
        control_plane.stop()
