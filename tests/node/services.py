"""The services of an overlay in a namespace of the node, with all that they need, and runs over them."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from gpt2.jobs.v1.job_pb2 import Job
from gpt2_orchestration.client.addresses import DEFAULT_PORTS
from gpt2_orchestration.client.service_client import ClientSettings
from tests.cluster.deployment import Administrator
from tests.cluster.waiting import wait_for
from tests.containers.runs import finish, insert_documents, start_run

from .node import NAME
from .stores import PASSWORD, SERVERS, TOKEN, secret

_VOLUMES = 5
_READY_SECONDS = 900
_RUN_SECONDS = 900
_REQUESTS = {"requests": {"cpu": "100m", "memory": "1Gi"}}
"""Those of the trainer, in place of the overlay's, which are for larger models."""


class Services:
    """The services of one overlay.

    Attributes:
        namespace: Where they are.
        overlay: Which one.

    Args:
        administrator: Acts on the cluster.
        folder: Where the volumes lie.
        overlay: Which one.
    """

    namespace = "gpt2"

    def __init__(self, administrator: Administrator, folder: Path, overlay: str) -> None:
        self._administrator = administrator
        self._volumes, self.overlay = folder, overlay
        self.kubectl = partial(administrator.control_plane.kubectl, "--namespace", self.namespace)

    def deploy(self) -> float:
        """Applies all, and waits until each pod is ready. Returns the seconds that the overlay's own pods needed."""
        self._administrator.create_namespace(self.namespace)
        self._create_volumes()
        objects = [secret(), *(item for server in SERVERS for item in server.objects())]
        self.kubectl("apply", "--server-side", "--filename=-", content=yaml.safe_dump_all(objects))
        self.wait_until_ready()
        insert_documents(PASSWORD, self.address("mongodb"))
        began = time.monotonic()
        self._administrator.apply_overlay(self.overlay, self.namespace, **self._changes())
        self.wait_until_ready()
        return time.monotonic() - began

    def remove(self) -> None:
        """Deletes the namespace with all in it, and its volumes."""
        kubectl = self._administrator.control_plane.kubectl
        kubectl("delete", "namespace", self.namespace, "--wait=false")
        path = f"/api/v1/namespaces/{self.namespace}"
        wait_for(lambda: self._administrator.control_plane.api.get(path) is None, self.state)
        kubectl("delete", "persistentvolumes", "--all")

    @property
    def client(self) -> ClientSettings:
        """Calls the services by their Services."""
        addresses = {name: f"{self.address(name)}:{port}" for name, port in DEFAULT_PORTS.items()}
        return ClientSettings(addresses=addresses, token=TOKEN)

    def address(self, service: str) -> str:
        """A Service's address."""
        [found] = [item for item in self.objects("services") if item["metadata"]["name"] == service]
        return str(found["spec"]["clusterIP"])

    def objects(self, *kinds: str) -> list[dict[str, Any]]:
        """The objects of some kinds, such as `pods`."""
        return self._administrator.objects(self.namespace, *kinds)

    def wait_until_ready(self) -> None:
        """Waits until each Deployment has its replicas, all ready."""

        def ready() -> bool:
            found = self.objects("deployments")
            return all(item.get("status", {}).get("readyReplicas", 0) == item["spec"]["replicas"] for item in found)

        wait_for(ready, self.state, _READY_SECONDS)

    def start_run(self, run_id: str, **options: Any) -> None:
        """Starts a planned run."""
        start_run(run_id, client=self.client, **options)

    def finish(self, run_id: str) -> Mapping[str, Job]:
        """Waits until a run has registered its version. Returns its jobs."""
        try:
            return finish(run_id, _RUN_SECONDS, self.client)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.state()}") from error

    def state(self) -> str:
        """What is not well, with the last events."""
        lines = [self.kubectl("get", "pods", "--output=wide")]
        events = sorted(self.objects("events"), key=lambda item: item["metadata"]["creationTimestamp"])
        lines += [f"{item['involvedObject']['name']}: {item.get('message')}" for item in events[-40:]]
        for pod in self.objects("pods"):
            if not all(item["ready"] for item in pod["status"].get("containerStatuses", [])):
                name = pod["metadata"]["name"]
                try:
                    lines.append(self.kubectl("logs", name, "--all-containers", "--tail=15"))
                except AssertionError as error:
                    lines.append(str(error))
        return "\n".join(lines)

    def _create_volumes(self) -> None:
        # Belongs to root: the kubelet gives it to the group that the pods ask for.
        terms = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [NAME]}]}]
        for number in range(_VOLUMES):
            path = self._volumes / str(number)
            path.mkdir(parents=True)
            spec = {
                "capacity": {"storage": "1Ti"},
                "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
                "local": {"path": str(path)},
                "nodeAffinity": {"required": {"nodeSelectorTerms": terms}},
            }
            metadata = {"name": f"{self.namespace}-{number}"}
            content = {"metadata": metadata, "spec": spec}
            self._administrator.control_plane.api.create("/api/v1/persistentvolumes", content)

    def _changes(self) -> dict[str, Any]:
        """What a kustomization on top of the overlay says, as an operator's own would."""
        variables = []
        if self.overlay == "trainjob":
            variables += [
                {"name": "GPT2_TRAINJOB_MEMORY", "value": "3Gi"},
                {"name": "GPT2_TRAINJOB_CPU", "value": "100m"},
            ]
        container = {"name": "trainer", "env": variables, "resources": _REQUESTS}
        patch = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "trainer"},
            "spec": {"template": {"spec": {"containers": [container]}}},
        }
        return {"patches": [{"patch": yaml.safe_dump(patch)}]}
