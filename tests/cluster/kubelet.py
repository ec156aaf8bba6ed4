"""A stand-in for a node's kubelet: registers the node, runs the pods bound to it as processes, and serves their logs.

To the rest of the cluster it is a kubelet: it has the rights of a node alone, renews its lease, reports the status of
its pods, and the API server gets the logs from it over mutual TLS.
"""

import contextlib
import json
import ssl
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests

from .control_plane import LOOPBACK, ControlPlane
from .pod import Image, Pod

_LEASE_SECONDS = 40
_RENEW_SECONDS = 10
_RETRY_SECONDS = 0.5
_LOG_SECONDS = 0.05
_CAPACITY = {"cpu": "64", "memory": "512Gi", "pods": "110", "nvidia.com/gpu": "16"}
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


class Kubelet:
    """One node, from `start` to `stop`.

    Attributes:
        name: The node's.
        images: What stands for container images, by name without tag; an image that is not among them cannot be pulled.
        seen: All pods that were ever bound to the node, the oldest first.

    Args:
        name: The node's.
        folder: Where pods work and their logs lie.
        cluster: What it belongs to.
        images: What stands for container images.
    """

    def __init__(self, name: str, folder: Path, cluster: ControlPlane, images: Mapping[str, Image]) -> None:
        self.name, self.images = name, dict(images)
        self._folder = folder
        folder.mkdir()
        self._api = cluster.access(f"system:node:{name}", organization="system:nodes")
        self._pods: dict[str, Pod] = {}
        self.seen: list[Pod] = []
        self._stopping = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Logs,), {"kubelet": self}))
        self._server.socket = _mutual_tls(cluster, name).wrap_socket(self._server.socket, server_side=True)

    def start(self) -> None:
        """Registers the node, and takes pods from then on."""
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._register()
        for work in (self._follow_pods, self._renew_lease):
            threading.Thread(target=work, name=f"{self.name} {work.__name__}", daemon=True).start()

    def stop(self) -> None:
        """Ends as a machine does that loses its power: its pods with it, without a report."""
        self._stopping.set()
        for pod in list(self._pods.values()):
            pod.lose()
        self._server.shutdown()
        self._server.server_close()

    def pod(self, namespace: str, name: str) -> Pod | None:
        """A pod on the node that has not been removed; None where there is none."""
        found = [pod for pod in list(self._pods.values()) if (pod.namespace, pod.name) == (namespace, name)]
        return found[-1] if found else None

    def _register(self) -> None:
        labels = {"kubernetes.io/hostname": self.name, "nvidia.com/gpu.present": "true"}
        self._api.create("/api/v1/nodes", {"metadata": {"name": self.name, "labels": labels}})
        status = {
            "capacity": _CAPACITY,
            "allocatable": _CAPACITY,
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": self.name}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self._server.server_port}},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": _now()}],
        }
        self._api.patch(f"/api/v1/nodes/{self.name}/status", {"status": status})

    def _renew_lease(self) -> None:
        api = self._api.copy()
        metadata = {"name": self.name}
        while not self._stopping.is_set():
            spec = {"holderIdentity": self.name, "leaseDurationSeconds": _LEASE_SECONDS, "renewTime": _now(".%fZ")}
            with _reported("lease"):
                if api.patch(f"{_LEASES}/{self.name}", {"spec": spec}) is None:
                    api.create(_LEASES, {"metadata": metadata, "spec": spec})
            self._stopping.wait(_RENEW_SECONDS)

    def _follow_pods(self) -> None:
        api = self._api.copy()
        selector = {"fieldSelector": f"spec.nodeName={self.name}"}
        while not self._stopping.is_set():
            with _reported("pods"):
                found = api.get("/api/v1/pods", **selector) or {}
                for pod in found["items"]:
                    self._look_at(pod)
                for kind, pod in api.watch("/api/v1/pods", found["metadata"]["resourceVersion"], **selector):
                    if self._stopping.is_set():
                        return
                    if kind == "ERROR":
                        break  # what was seen last is too long ago
                    self._look_at(pod, is_gone=kind == "DELETED")
            self._stopping.wait(_RETRY_SECONDS)

    def _look_at(self, found: Mapping[str, Any], is_gone: bool = False) -> None:
        metadata = found["metadata"]
        uid = metadata["uid"]
        if uid not in self._pods and not is_gone:
            self._pods[uid] = Pod(found, self._folder / uid, self._api.copy(), self.images)
            self.seen.append(self._pods[uid])
        if is_gone and uid in self._pods:
            # Also when somebody else removed it by force.
            self._pods.pop(uid).lose()
        elif "deletionTimestamp" in metadata:
            self._pods[uid].delete(metadata.get("deletionGracePeriodSeconds") or 0)


class _Logs(BaseHTTPRequestHandler):
    """The kubelet's API, of which only the logs of containers are served."""

    kubelet: Kubelet
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Prints nothing."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        kind, namespace, name, container = (url.path.strip("/").split("/") + [""] * 4)[:4]
        pod = self.kubelet.pod(namespace, name) if kind == "containerLogs" else None
        if pod is None or not pod.log(container).exists():
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        tail = int(query["tailLines"]) if "tailLines" in query else None
        with contextlib.suppress(OSError):
            for chunk in _read_log(pod, pod.log(container), tail, query.get("follow") == "true"):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")


def _read_log(pod: Pod, path: Path, tail: int | None, follow: bool) -> Iterator[bytes]:
    with path.open("rb") as log:
        lines = log.readlines()
        yield from lines if tail is None else lines[len(lines) - min(tail, len(lines)) :]
        while follow:
            ended = pod.ended
            if chunk := log.read():
                yield chunk
            elif ended:
                return
            else:
                time.sleep(_LOG_SECONDS)


def _mutual_tls(cluster: ControlPlane, name: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(cluster.authority.file))
    context.load_cert_chain(*cluster.authority.sign(f"{name}-server", LOOPBACK))
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@contextlib.contextmanager
def _reported(what: str) -> Iterator[None]:
    """Has a call that fails tried again, as kubelets do."""
    try:
        yield
    except (requests.RequestException, json.JSONDecodeError, AssertionError) as error:
        print(f"{what}: {error}", file=sys.stderr)


def _now(end: str = "Z") -> str:
    return datetime.now(UTC).strftime(f"%Y-%m-%dT%H:%M:%S{end}")
