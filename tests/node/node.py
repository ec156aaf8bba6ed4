"""A node of a cluster: kubelet, containerd and kube-proxy, in this process's own namespaces.

Its network is a bridge of pods, without a route out; `make test-node` gives it separate namespaces for network,
mounts and processes, so that the machine has nothing of it afterwards but empty cgroups.
"""

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509

from tests.cluster.cluster_programs import NodePrograms
from tests.cluster.control_plane import SERVICE_ADDRESSES, ControlPlane

from .cni import POD_ADDRESSES, install_plugins, write_network
from .containerd import Containerd
from .name_server import DOMAIN, NameServer
from .network_policies import enforce_network_policies

ADDRESS = "10.88.255.1"
"""The node's, and the API server's."""
NAME = "node-1"
_CGROUPS = Path("/sys/fs/cgroup")
_CGROUP = "gpt2-test-node"
_CPU_SHARES = 8192
"""All pods together weigh as one process of the machine otherwise, and starve on a busy one."""
_EXTENDED = {"nvidia.com/gpu": "8"}
"""Resources that the node has by its word alone: no GPU is here."""
_EVICTION = {"memory.available": "200Mi", "nodefs.available": "1%", "imagefs.available": "1%"}


def prepare_network() -> None:
    """Gives this network namespace the node's address. Raises AssertionError where it is the machine's own."""
    routes = json.loads(_run("ip", "-json", "route", "show", "default"))
    assert not routes, "this network namespace leads out: run `make test-node`, which makes another one for the tests"
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")
    # For what the node itself sends to Services, before kube-proxy's rules send it to a pod.
    _run("ip", "route", "add", SERVICE_ADDRESSES, "dev", "lo", "src", ADDRESS)
    for name in ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"):
        (Path("/proc/sys") / name).write_text("1")


class Node:
    """Runs from `start` to `stop`.

    Args:
        folder: Where its files lie.
        control_plane: What it belongs to.
        programs: What it is made of.
        images: containerd's folder.
    """

    def __init__(self, folder: Path, control_plane: ControlPlane, programs: NodePrograms, images: Path) -> None:
        self._folder, self._control_plane, self._programs = folder, control_plane, programs
        folder.mkdir()
        configuration = folder / "cni"
        write_network(configuration, folder / "addresses")
        self._containerd = Containerd(images, folder, (install_plugins(), configuration))

    def start(self) -> None:
        """Starts all, and waits until the node is ready."""
        self._containerd.start()
        NameServer(ADDRESS, self._control_plane.api.copy())
        enforce_network_policies(self._control_plane, NAME, self._programs.network_policies)
        self._start_kubelet()
        access = self._control_plane.write_kubeconfig("proxy", self._control_plane.access("system:kube-proxy"))
        self._control_plane.run(
            "kube-proxy",
            [
                *(self._programs.parts, "kube-proxy", "--kubeconfig", access, "--hostname-override", NAME),
                *("--proxy-mode=iptables", "--cluster-cidr", POD_ADDRESSES, "--bind-address", ADDRESS),
                # Limits of the whole machine, which this namespace cannot set.
                *("--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0"),
                "--conntrack-tcp-timeout-close-wait=0",
            ],
        )
        api = self._control_plane.api
        self._control_plane.wait(self._is_ready, "the node is ready")
        api.patch(f"/api/v1/nodes/{NAME}", {"metadata": {"labels": {"nvidia.com/gpu.present": "true"}}})
        api.patch(f"/api/v1/nodes/{NAME}/status", {"status": {"capacity": _EXTENDED}})
        self._control_plane.wait(
            lambda: self._status()["allocatable"].items() >= _EXTENDED.items(), "extended resources"
        )

    def stop(self) -> None:
        """Ends containerd; the containers end with the namespace of processes."""
        self._containerd.stop()

    def kill_container(self, pod: Mapping[str, Any], name: str) -> None:
        """Kills the main process of a pod's container, as a kernel that lacks memory does."""
        [status] = [item for item in pod["status"]["containerStatuses"] if item["name"] == name]
        container = status["containerID"].removeprefix("containerd://")
        tasks = [line.split() for line in self._containerd.ctr("tasks", "list").splitlines()]
        [process] = [int(columns[1]) for columns in tasks if columns[0] == container]
        os.kill(process, signal.SIGKILL)

    def _start_kubelet(self) -> None:
        plane = self._control_plane
        for hierarchy in _CGROUPS.iterdir():
            (hierarchy / _CGROUP).mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            # A new cgroup of version 1 has none.
            source = _CGROUPS / "cpuset" / name
            if source.exists():
                (_CGROUPS / "cpuset" / _CGROUP / name).write_text(source.read_text())
        shares = _CGROUPS / "cpu" / _CGROUP / "cpu.shares"
        if shares.exists():
            shares.write_text(str(_CPU_SHARES))
        certificate, key = plane.authority.sign("kubelet-server", x509.IPAddress(ip_address(ADDRESS)))
        access = plane.write_kubeconfig("kubelet", plane.access(f"system:node:{NAME}", organization="system:nodes"))
        resolver = self._folder / "resolv.conf"
        resolver.write_text("")
        content = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{_CGROUP}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "containerRuntimeEndpoint": f"unix://{self._containerd.socket}",
            "clusterDNS": [ADDRESS],
            "clusterDomain": DOMAIN,
            "resolvConf": str(resolver),
            "address": ADDRESS,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": False},
                "x509": {"clientCAFile": str(plane.authority.file)},
            },
            # Whoever has a certificate of the cluster's authority is the API server.
            "authorization": {"mode": "AlwaysAllow"},
            "tlsCertFile": str(certificate),
            "tlsPrivateKeyFile": str(key),
            "podLogsDir": str(self._folder / "logs"),
            "evictionHard": _EVICTION,
            "imageGCHighThresholdPercent": 100,
            # How soon the kubelet sees what a pod writes, and evicts it for that.
            "volumeStatsAggPeriod": "5s",
        }
        configuration = self._folder / "kubelet.yaml"
        configuration.write_text(yaml.safe_dump(content))
        plane.run(
            "kubelet",
            [
                *(self._programs.parts, "kubelet", "--kubeconfig", access, "--config", configuration),
                *("--root-dir", self._folder / "kubelet", "--hostname-override", NAME, "--node-ip", ADDRESS),
            ],
        )

    def _status(self) -> Mapping[str, Any]:
        found = self._control_plane.api.get(f"/api/v1/nodes/{NAME}") or {}
        status: Mapping[str, Any] = found.get("status", {})
        return status

    def _is_ready(self) -> bool:
        conditions = self._status().get("conditions", [])
        return any((item["type"], item["status"]) == ("Ready", "True") for item in conditions)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
