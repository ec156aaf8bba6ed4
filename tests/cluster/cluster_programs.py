"""The programs of a cluster, and the objects that install its controllers, from their Go modules.

    python tests/cluster/cluster_programs.py [node]

builds them once into `$GPT2_CLUSTER_CACHE` (else `~/.cache/gpt2-cluster`), for all checkouts of a machine; with `node`
also the parts that run on a node. Its folders are named after the versions of all that is in them, so that another
version is built beside.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

_SOURCES = Path(__file__).with_name("programs")
_BUILD_SECONDS = 5400
_SHOWN_ERROR_LENGTH = 4000


class BuildError(Exception):
    """A program cannot be built here; the message says why."""


@dataclass(frozen=True)
class Controller:
    """A controller that a cluster is extended by.

    Attributes:
        module: Its Go module.
        package: Its main package.
        manifests: The folder of its module with all kustomizations that its own refers to.
        kustomization: Its own, in that folder.
    """

    module: str
    package: str
    manifests: str
    kustomization: str


CONTROLLERS = {
    "jobset": Controller(
        module="sigs.k8s.io/jobset",
        package="sigs.k8s.io/jobset",
        manifests="config",
        kustomization="default",
    ),
    "trainer": Controller(
        module="github.com/kubeflow/trainer/v2",
        package="github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager",
        manifests="manifests",
        kustomization="overlays/manager",
    ),
}


@dataclass(frozen=True)
class Programs:
    """Paths of what a cluster is made of.

    Attributes:
        kubernetes: A program whose first argument names the part: etcd, kube-apiserver, kubectl and so on.
        controllers: Program and objects (YAML) of each controller.
    """

    kubernetes: Path
    controllers: Mapping[str, tuple[Path, Path]]


@dataclass(frozen=True)
class NodePrograms:
    """Paths of what a node is made of.

    Attributes:
        parts: A program whose first argument names the part: kubelet or kube-proxy.
        network_policies: Enforces NetworkPolicies.
    """

    parts: Path
    network_policies: Path


def built_programs() -> Programs | None:
    """What has been built; None where a part is missing."""
    kubernetes = _folder("kubernetes") / "kubernetes"
    controllers = {name: (_folder(name) / name, _folder(name) / "objects.yaml") for name in CONTROLLERS}
    are_there = all(path.exists() for path in (kubernetes, *(path for pair in controllers.values() for path in pair)))
    return Programs(kubernetes, controllers) if are_there else None


def built_node_programs() -> NodePrograms | None:
    """What has been built of a node; None where a part is missing."""
    parts, network_policies = (_folder(name) / name for name in ("node", "network-policies"))
    return NodePrograms(parts, network_policies) if parts.exists() and network_policies.exists() else None


def build_programs() -> None:
    """Builds what is missing of a control plane. Raises BuildError."""
    _build("kubernetes", partial(_build_parts, name="kubernetes"))
    for name, controller in CONTROLLERS.items():
        _build(name, partial(_build_controller, name=name, controller=controller))


def build_node_programs() -> None:
    """Builds what is missing of a node. Raises BuildError."""
    _build("node", partial(_build_parts, name="node"))
    _build("network-policies", partial(_go_build, name="network-policies", package="."))


def cluster_cache() -> Path:
    """The folder of all that is built once."""
    return Path(os.environ.get("GPT2_CLUSTER_CACHE") or Path.home() / ".cache" / "gpt2-cluster")


def _folder(name: str) -> Path:
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted((_SOURCES / name).iterdir())))
    return cluster_cache() / f"{name}-{digest.hexdigest()[:16]}"


def _build(name: str, build: Callable[[Path], None]) -> None:
    folder = _folder(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f"{name}.part")
    with folder.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return
        if not shutil.which("go"):
            raise BuildError(f"{name}: needs Go, see https://go.dev/dl")
        print(f"building {name}, once, into {folder}", file=sys.stderr)
        began = time.monotonic()
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        build(unfinished)
        unfinished.rename(folder)
        print(f"built {name} in {time.monotonic() - began:.0f} s", file=sys.stderr)


def _build_parts(folder: Path, name: str) -> None:
    # As Kubernetes' own build sets it; else its API would say v0.0.0.
    version = _version(name, "k8s.io/kubernetes")
    major, minor, _ = version.removeprefix("v").split(".")
    values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    _go_build(folder, name, ".", *(f"-X=k8s.io/component-base/version.{key}={values[key]}" for key in values))


def _version(name: str, module: str) -> str:
    found = re.search(rf"^\s+{re.escape(module)} (v[0-9.]+)$", (_SOURCES / name / "go.mod").read_text(), re.MULTILINE)
    assert found, f"{module} is missing in the go.mod of {name}"
    return found[1]


def _build_controller(folder: Path, name: str, controller: Controller) -> None:
    _go_build(folder, name, controller.package)
    answer = _run(["go", "mod", "download", "-json", controller.module], cwd=_SOURCES / name)
    copy = folder / "manifests"
    # Without the modes of the module cache, where nothing can be written.
    shutil.copytree(Path(json.loads(answer)["Dir"]) / controller.manifests, copy, copy_function=shutil.copyfile)
    for path in (copy, *copy.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    kustomization = copy / controller.kustomization / "kustomization.yaml"
    content: dict[str, Any] = yaml.safe_load(kustomization.read_text())
    # JobSet comes from its own module. Kubeflow's file would fetch it from GitHub, and says to leave that out.
    content["resources"] = [entry for entry in content["resources"] if entry != "../../third-party/jobset"]
    kustomization.write_text(yaml.safe_dump(content))
    kubernetes = _folder("kubernetes") / "kubernetes"
    objects = _run([str(kubernetes), "kubectl", "kustomize", str(kustomization.parent)], cwd=folder)
    (folder / "objects.yaml").write_text(objects)
    shutil.rmtree(copy)


def _go_build(folder: Path, name: str, package: str, *linker_flags: str) -> None:
    flags = " ".join(["-s", "-w", *linker_flags])
    _run(["go", "build", "-trimpath", "-ldflags", flags, "-o", str(folder / name), package], cwd=_SOURCES / name)


def _run(command: Sequence[str], cwd: Path) -> str:
    """What a program prints. Raises BuildError where it fails, as for a module that is refused, or has no end."""
    environment = {**os.environ, "CGO_ENABLED": "0"}
    try:
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=_BUILD_SECONDS)
    except subprocess.TimeoutExpired as error:
        # Go keeps each package that it has compiled.
        raise BuildError(
            f"{' '.join(command)}, in {cwd}: no end within {_BUILD_SECONDS} s; run it again, it continues"
        ) from error
    if done.returncode:
        raise BuildError(f"{' '.join(command)}, in {cwd}: {done.stderr[-_SHOWN_ERROR_LENGTH:]}")
    return done.stdout


if __name__ == "__main__":
    try:
        build_programs()
        if sys.argv[1:] == ["node"]:
            build_node_programs()
    except BuildError as error:
        sys.exit(f"a cluster's programs cannot be built: {error}")
