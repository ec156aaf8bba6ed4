"""Pods that run a command once, as Pod Security `restricted` admits them."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.cluster.deployment import Administrator
from tests.cluster.waiting import wait_for

_SECONDS = 900


def run_pod(
    administrator: Administrator,
    namespace: str,
    name: str,
    image: str,
    command: Sequence[str],
    labels: Mapping[str, str],
    environment: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Runs a pod to its end. Returns what it has printed. Raises AssertionError with that where it fails."""
    container = {
        "name": "main",
        "image": image,
        "command": command,
        "env": environment,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    api, kubectl = administrator.control_plane.api, administrator.control_plane.kubectl
    path = f"/api/v1/namespaces/{namespace}/pods"
    api.create(path, {"metadata": {"name": name, "labels": labels}, "spec": spec})

    def ended() -> str:
        pod = api.get(f"{path}/{name}")
        phase: str = pod["status"]["phase"] if pod else "deleted"
        return "" if phase in ("Pending", "Running") else phase

    phase = wait_for(ended, lambda: kubectl("--namespace", namespace, "describe", "pod", name), _SECONDS, 0.5)
    printed = kubectl("--namespace", namespace, "logs", name)
    assert phase == "Succeeded", f"{name} in {namespace}: {phase}\n{printed}"
    return printed
