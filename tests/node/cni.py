"""The network of pods: Debian's plugins of the Container Network Interface, and their configuration."""

import json
import shutil
from pathlib import Path

from tests.cluster.cluster_programs import cluster_cache
from tests.containers.engine import run

POD_ADDRESSES = "10.244.0.0/24"
_SECONDS = 600


def install_plugins() -> Path:
    """The folder of the programs, unpacked where they are not. Raises EngineError."""
    folder = cluster_cache() / "cni"
    programs = folder / "usr" / "lib" / "cni"
    if not programs.exists():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        command = ["apt-get", "--quiet=2", "-o", "APT::Sandbox::User=root", "download", "containernetworking-plugins"]
        run(command, {}, _SECONDS, part)
        for package in part.glob("*.deb"):
            run(["dpkg", "--extract", str(package), str(part)], {}, _SECONDS)
            package.unlink()
        part.rename(folder)
    return programs


def write_network(folder: Path, addresses: Path) -> None:
    """Writes the configuration of a bridge to which all pods are connected.

    Args:
        folder: Where containerd looks for it.
        addresses: A folder for the addresses that are given out.
    """
    folder.mkdir()
    ipam = {
        "type": "host-local",
        "dataDir": str(addresses),
        "ranges": [[{"subnet": POD_ADDRESSES}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": "pods", "isGateway": True, "hairpinMode": True, "ipam": ipam}
    content = {"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]}
    (folder / "pods.conflist").write_text(json.dumps(content))
