"""A control plane of Kubernetes as processes of this machine: etcd, API server, controller manager and scheduler."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import requests
import yaml
from certificates import Authority
from cryptography import x509
from free_ports import free_port

from .api import Api, Identity, kubeconfig
from .cluster_programs import Programs

_LOOPBACK_ADDRESS = "127.0.0.1"
LOOPBACK = x509.IPAddress(ip_address(_LOOPBACK_ADDRESS))
SERVICE_ADDRESSES = "10.96.0.0/16"
_API_SERVICE = x509.IPAddress(ip_address("10.96.0.1"))
_START_SECONDS = 300
_TOKEN_SECONDS = 24 * 3600
_SHOWN_LOG_LENGTH = 2000
# Who called what, without the contents.
_AUDIT_POLICY = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata"}]}


class ControlPlane:
    """Runs from `start` to `stop`.

    Attributes:
        url: Where the API is.
        authority: Signs the certificates that the cluster trusts.
        audit_log: File with each call of the API, one JSON object a line.
        api: The API, for an administrator.

    Args:
        folder: Where data, logs and certificates lie.
        programs: What to run.
        address: Where the API server listens. Pods reach it by the Service `kubernetes` unless it is of loopback.
    """

    def __init__(self, folder: Path, programs: Programs, address: str = _LOOPBACK_ADDRESS) -> None:
        self._folder, self._address = folder, address
        self._program = programs.kubernetes
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._certificates, self._logs = folder / "certificates", folder / "logs"
        for path in (self._certificates, self._logs):
            path.mkdir(parents=True)
        self.url = f"https://{address}:{free_port()}"
        self.authority = Authority(self._certificates)
        self.audit_log = self._logs / "audit.jsonl"
        self.api = self.access("admin", organization="system:masters")
        self._admin = self.write_kubeconfig("admin", self.api)

    def start(self) -> None:
        """Starts all, and waits until the API is ready."""
        store = self._start_etcd()
        service_accounts, service_accounts_key = self.authority.sign("service-accounts")
        self._start_api_server(store, service_accounts, service_accounts_key)
        self.wait(lambda: self.api.call("GET", "/readyz").ok, "the API server is ready")
        options = ["--leader-elect=false", "--secure-port=0"]
        access = self.write_kubeconfig("controllers", self.access("system:kube-controller-manager"))
        self.run(
            "kube-controller-manager",
            [
                *(self._program, "kube-controller-manager", "--kubeconfig", access, *options),
                *("--service-account-private-key-file", service_accounts_key, "--use-service-account-credentials"),
                *("--root-ca-file", self.authority.file),
                # A claim that comes before its volume is looked at again soon.
                "--pvclaimbinder-sync-period=1s",
            ],
        )
        access = self.write_kubeconfig("scheduler", self.access("system:kube-scheduler"))
        self.run("kube-scheduler", [self._program, "kube-scheduler", "--kubeconfig", access, *options])

    def stop(self) -> None:
        """Kills all processes, of which nothing is kept."""
        for process in reversed(self._processes.values()):
            process.kill()
            process.wait()

    def run(self, name: str, command: Sequence[str | Path], **variables: str) -> None:
        """Runs a program that belongs to the cluster, until it stops."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self._folder), **variables}
        with self._log(name).open("wb") as log:
            process = subprocess.Popen(command, env=environment, cwd=self._folder, stdout=log, stderr=log)
        self._processes[name] = process

    def kubectl(self, *arguments: str | Path, content: str = "") -> str:
        """What kubectl prints for an administrator. Raises AssertionError with its errors."""
        command = [self._program, "kubectl", "--kubeconfig", self._admin, *arguments]
        done = subprocess.run(command, input=content, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"kubectl {' '.join(map(str, arguments))}: {done.stderr}"
        return done.stdout

    def access(self, user: str, organization: str = "") -> Api:
        """The API, for a user with a certificate."""
        certificate, key = self.authority.sign(user, organization=organization)
        return Api(self.url, self.authority.file, Identity(certificate, key))

    def service_account(self, namespace: str, name: str) -> Api:
        """The API, for a service account with a token, as its pods get one."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        answer = self.api.create(path, {"spec": {"expirationSeconds": _TOKEN_SECONDS}})
        return Api(self.url, self.authority.file, Identity(token=answer["status"]["token"]))

    def write_kubeconfig(self, name: str, api: Api) -> Path:
        """Writes a kubeconfig, with which programs call the API as that identity."""
        path = self._certificates / f"{name}.kubeconfig"
        path.write_text(kubeconfig(api))
        return path

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """Waits until a condition has a true value. Raises AssertionError with the logs of what has ended."""
        deadline = time.monotonic() + _START_SECONDS
        while True:
            with contextlib.suppress(requests.ConnectionError):
                if found := condition():
                    return found
            ended = [name for name, process in self._processes.items() if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                tails = [f"{name}:\n{self._log(name).read_text()[-_SHOWN_LOG_LENGTH:]}" for name in ended]
                raise AssertionError(f"waited for: {what}\n" + "\n".join(tails))
            time.sleep(0.1)

    def _start_etcd(self) -> str:
        clients, peers = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self.run(
            "etcd",
            [
                *(self._program, "etcd", "--data-dir", self._folder / "etcd", "--log-level", "warn"),
                *("--listen-client-urls", clients, "--advertise-client-urls", clients),
                *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers),
                # What is lost with the machine is of no use anyway.
                *("--initial-cluster", f"default={peers}", "--unsafe-no-fsync"),
            ],
        )
        return clients

    def _start_api_server(self, store: str, service_accounts: Path, service_accounts_key: Path) -> None:
        own = x509.IPAddress(ip_address(self._address))
        certificate, key = self.authority.sign("kube-apiserver", own, _API_SERVICE)
        to_kubelets, to_kubelets_key = self.authority.sign("kube-apiserver-kubelet-client")
        policy = self._folder / "audit-policy.yaml"
        policy.write_text(yaml.safe_dump(_AUDIT_POLICY))
        self.run(
            "kube-apiserver",
            [
                *(self._program, "kube-apiserver", "--etcd-servers", store, "--authorization-mode=Node,RBAC"),
                *("--bind-address", self._address, "--secure-port", self.url.rpartition(":")[2]),
                *self._advertisement(),
                f"--service-cluster-ip-range={SERVICE_ADDRESSES}",
                "--enable-admission-plugins=NodeRestriction",
                *("--tls-cert-file", certificate, "--tls-private-key-file", key),
                *("--client-ca-file", self.authority.file),
                *("--service-account-issuer", "https://kubernetes.default.svc"),
                *("--service-account-key-file", service_accounts),
                *("--service-account-signing-key-file", service_accounts_key),
                *("--kubelet-client-certificate", to_kubelets, "--kubelet-client-key", to_kubelets_key),
                *("--kubelet-certificate-authority", self.authority.file),
                "--kubelet-preferred-address-types=InternalIP",
                *("--audit-policy-file", policy, "--audit-log-path", self.audit_log),
            ],
        )

    def _advertisement(self) -> list[str]:
        # The Service `kubernetes` may not have an address of loopback.
        if self._address == _LOOPBACK_ADDRESS:
            return ["--endpoint-reconciler-type=none"]
        return [f"--advertise-address={self._address}"]

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"
