"""JobSet and Kubeflow Trainer in a cluster: their own objects, and their controllers as processes beside it."""

import base64
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import requests
import yaml
from free_ports import free_port

from .cluster_programs import Programs
from .control_plane import LOOPBACK, ControlPlane

_WEBHOOKS = ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
# What their pods would be, and need: here they are processes.
_LEFT_OUT = ("Deployment", "Service", "Secret", "ConfigMap")
_ACCOUNTS = {
    "jobset": ("jobset-system", "jobset-controller-manager"),
    "trainer": ("kubeflow-system", "kubeflow-trainer-controller-manager"),
}
_CERTIFICATE_SETTINGS = {
    "jobset": ("config.jobset.x-k8s.io/v1alpha1", "internalCertManagement"),
    "trainer": ("config.trainer.kubeflow.org/v1alpha1", "certManagement"),
}


def start_controller(name: str, folder: Path, cluster: ControlPlane, programs: Programs) -> None:
    """Applies a controller's own objects, and starts it with the rights of its service account."""
    program, objects = programs.controllers[name]
    folder.mkdir()
    port, health = free_port(), free_port()
    found = [entry for entry in yaml.safe_load_all(objects.read_text()) if entry["kind"] not in _LEFT_OUT]
    webhooks = [_with_url(entry, port, cluster) for entry in found if entry["kind"] in _WEBHOOKS]
    # Kinds and namespaces come first, as kubectl sorts them; the webhooks last, when somebody answers.
    _apply(cluster, [entry for entry in found if entry["kind"] not in _WEBHOOKS])
    for entry in found:
        if entry["kind"] == "CustomResourceDefinition":
            cluster.wait(partial(_is_established, entry["metadata"]["name"], cluster), f"the kinds of {name}")
    configuration = folder / "configuration.yaml"
    configuration.write_text(yaml.safe_dump(_configuration(name, port, health)))
    access = cluster.write_kubeconfig(name, cluster.service_account(*_ACCOUNTS[name]))
    _write_certificate(folder / "k8s-webhook-server" / "serving-certs", name, cluster)
    # Below its folder for temporary files a controller finds its certificate.
    cluster.run(name, [program, "--config", configuration], KUBECONFIG=str(access), TMPDIR=str(folder))
    cluster.wait(lambda: _is_ready(health), f"{name} is ready")
    _apply(cluster, webhooks)


def _configuration(name: str, port: int, health: int) -> dict[str, Any]:
    version, certificates = _CERTIFICATE_SETTINGS[name]
    return {
        "apiVersion": version,
        "kind": "Configuration",
        "webhook": {"host": "127.0.0.1", "port": port},
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
        "metrics": {"bindAddress": "0"},
        "leaderElection": {"leaderElect": False},
        certificates: {"enable": False},
    }


def _with_url(entry: dict[str, Any], port: int, cluster: ControlPlane) -> dict[str, Any]:
    authority = base64.b64encode(cluster.authority.file.read_bytes()).decode()
    for webhook in entry["webhooks"]:
        path = webhook["clientConfig"]["service"]["path"]
        webhook["clientConfig"] = {"url": f"https://127.0.0.1:{port}{path}", "caBundle": authority}
    return entry


def _write_certificate(folder: Path, name: str, cluster: ControlPlane) -> None:
    folder.mkdir(parents=True)
    certificate, key = cluster.authority.sign(f"{name}-webhooks", LOOPBACK)
    shutil.copy(certificate, folder / "tls.crt")
    shutil.copy(key, folder / "tls.key")


def _is_established(kind: str, cluster: ControlPlane) -> bool:
    found = cluster.api.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{kind}") or {}
    # There, and null, at first: what `kubectl wait` takes for an error.
    conditions = found.get("status", {}).get("conditions") or []
    return any((item["type"], item["status"]) == ("Established", "True") for item in conditions)


def _is_ready(port: int) -> bool:
    return requests.get(f"http://127.0.0.1:{port}/readyz", timeout=5, proxies={"http": ""}).ok


def _apply(cluster: ControlPlane, objects: list[dict[str, Any]]) -> None:
    cluster.kubectl("apply", "--server-side", "--filename=-", content=yaml.safe_dump_all(objects))
