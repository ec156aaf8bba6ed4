"""Enforces NetworkPolicies on the node, by the program that kube-network-policies is here.

It decides on the first packet of each connection of a pod. Its own rules queue packets by nftables' `queue`, which some
kernels lack; rules of iptables do the same. Where the program has ended, nobody decides, and the packets are dropped.
"""

import subprocess
from pathlib import Path

from tests.cluster.control_plane import ControlPlane

from .cni import POD_ADDRESSES

_QUEUE = "100"
_RULES = (
    # What the node itself sends is not subject to policies: probes of the kubelet, and the calls of the tests.
    ("--match", "owner", "--uid-owner", "0", "--jump", "ACCEPT"),
    ("--match", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "--jump", "ACCEPT"),
    ("--source", POD_ADDRESSES, "--jump", "NFQUEUE", "--queue-num", _QUEUE),
    ("--destination", POD_ADDRESSES, "--jump", "NFQUEUE", "--queue-num", _QUEUE),
)


def enforce_network_policies(plane: ControlPlane, node: str, program: Path) -> None:
    """Starts enforcement, before any pod is there.

    Args:
        plane: What the node belongs to.
        node: The node's name.
        program: What decides.
    """
    for rule in _RULES:
        # After addresses of Services have become those of pods, and before anything is masqueraded.
        command = ["iptables", "--table", "mangle", "--append", "POSTROUTING", *rule]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    access = plane.write_kubeconfig("network-policies", plane.access("network-policies", organization="system:masters"))
    options = ["--kubeconfig", access, "--hostname-override", node, "--nfqueue-id", _QUEUE]
    plane.run("network-policies", [program, *options])
