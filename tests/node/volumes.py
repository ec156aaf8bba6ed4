"""Volumes for the claims of a namespace, in place of a provisioner: folders of this machine, bound in advance."""

import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.cluster.api import Api
from tests.cluster.waiting import wait_for

from .node import NAME

_PATH = "/api/v1/persistentvolumes"


class Volumes:
    """The volumes of one namespace.

    Args:
        api: The cluster's API.
        folder: Where they lie.
        namespace: Whose claims they are for.
    """

    def __init__(self, api: Api, folder: Path, namespace: str) -> None:
        self._api, self._folder, self._namespace = api, folder, namespace
        self._created: list[str] = []

    def create(self, claims: Iterable[str], megabytes: int = 0) -> None:
        """Creates a volume for each claim, whether the claim is there yet or not.

        Args:
            claims: Their names.
            megabytes: Size of the volume, which is in memory then; by default it is as large as the disk.
        """
        terms = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NAME]}]}]
        for claim in claims:
            # Belongs to root: the kubelet gives it to the group that the pods ask for.
            path = self.folder(claim)
            path.mkdir(parents=True)
            if megabytes:
                # Gone with the namespace of mounts that the tests run in.
                options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
                subprocess.run(["mount", *options], check=True)
            name = f"{self._namespace}-{claim}"
            spec = {
                "capacity": {"storage": "1Ti"},
                "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
                "claimRef": {"namespace": self._namespace, "name": claim},
                "local": {"path": str(path)},
                "nodeAffinity": {"required": {"nodeSelectorTerms": terms}},
            }
            self._api.create(_PATH, {"metadata": {"name": name}, "spec": spec})
            self._created.append(name)

    def folder(self, claim: str) -> Path:
        """Where the volume of a claim lies."""
        return self._folder / claim

    def remove(self) -> None:
        """Deletes the volumes; their folders stay for whoever looks for an error."""
        paths = [f"{_PATH}/{name}" for name in self._created]
        for path in paths:
            self._api.delete(path)
        wait_for(lambda: not any(map(self._api.get, paths)), f"the deletion of {', '.join(paths)}")
