"""A cluster with Kubeflow Trainer, whose namespaces enforce Pod Security `restricted`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from .cluster_programs import built_programs
from .control_plane import ControlPlane
from .controllers import start_controller
from .kubelet import Kubelet
from .pod import Image, Pod

TRAINER_IMAGE = "registry.example.com/gpt2-trainer-gpu"
"""The image of trainings, the one that the nodes have."""
OVERLAYS = Path(__file__).resolve().parents[2] / "orchestration" / "kubernetes" / "overlays"
_RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}
_VOLUMES_OF_AN_OVERLAY = 5


@dataclass
class Cluster:
    """A running cluster.

    Attributes:
        control_plane: Its API and its programs.
        node: The node that it begins with.
        nodes: All nodes that there ever were.
    """

    control_plane: ControlPlane
    node: Kubelet
    nodes: list[Kubelet]
    _folder: Path

    def create_namespace(self, name: str) -> None:
        """Creates a namespace that enforces Pod Security `restricted`."""
        metadata = {"name": name, "labels": _RESTRICTED}
        api = self.control_plane.api
        api.create("/api/v1/namespaces", {"metadata": metadata})
        # Until a controller has made it, pods of any kind are refused.
        account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        self.control_plane.wait(lambda: api.get(account), f"the service account of namespace {name}")

    def apply_overlay(self, overlay: str, namespace: str) -> str:
        """Applies an overlay of the manifests to a namespace. Returns what kubectl prints."""
        folder = self._folder / f"{overlay}-in-{namespace}"
        folder.mkdir()
        path = os.path.relpath(OVERLAYS / overlay, folder.resolve())
        (folder / "kustomization.yaml").write_text(yaml.safe_dump({"namespace": namespace, "resources": [path]}))
        return self.control_plane.kubectl("apply", "--server-side", "--kustomize", folder)

    def create_volumes(self, namespace: str) -> None:
        """Creates volumes for the claims of an overlay."""
        modes = ["ReadWriteOnce", "ReadWriteMany"]
        for number in range(_VOLUMES_OF_AN_OVERLAY):
            spec = {"capacity": {"storage": "1Ti"}, "accessModes": modes, "hostPath": {"path": str(self._folder)}}
            metadata = {"name": f"{namespace}-{number}"}
            self.control_plane.api.create("/api/v1/persistentvolumes", {"metadata": metadata, "spec": spec})

    def objects(self, namespace: str, *kinds: str, selector: str = "") -> list[dict[str, Any]]:
        """The objects of some kinds in a namespace, such as `pods` or `jobsets`."""
        command = ["get", ",".join(kinds), "--namespace", namespace, "--selector", selector, "--output=json"]
        items: list[dict[str, Any]] = yaml.safe_load(self.control_plane.kubectl(*command))["items"]
        return items

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
            yield Cluster(control_plane, node, [node], folder)
        finally:
            node.stop()
    finally:
        control_plane.stop()
