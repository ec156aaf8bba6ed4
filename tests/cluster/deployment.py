"""What an administrator does: makes namespaces that enforce Pod Security `restricted`, and applies overlays."""

import os
from pathlib import Path
from typing import Any

import yaml

from .control_plane import ControlPlane

OVERLAYS = Path(__file__).resolve().parents[2] / "orchestration" / "kubernetes" / "overlays"
_RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "audit", "warn")}


class Administrator:
    """Acts by kubectl and the API.

    Attributes:
        control_plane: The cluster's.

    Args:
        control_plane: The cluster's.
        folder: Where kustomizations are written.
    """

    def __init__(self, control_plane: ControlPlane, folder: Path) -> None:
        self.control_plane = control_plane
        self._folder = folder

    def create_namespace(self, name: str) -> None:
        """Creates a namespace that enforces Pod Security `restricted`."""
        metadata = {"name": name, "labels": _RESTRICTED}
        api = self.control_plane.api
        api.create("/api/v1/namespaces", {"metadata": metadata})
        # Until a controller has made it, pods of any kind are refused.
        account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        self.control_plane.wait(lambda: api.get(account), f"the service account of namespace {name}")

    def apply_overlay(self, overlay: str, namespace: str, **changes: Any) -> None:
        """Applies an overlay of the manifests to a namespace.

        Args:
            overlay: Its folder's name.
            namespace: Where to.
            **changes: What a kustomization on top of it has besides, such as `patches`.
        """
        folder = self._folder / f"{overlay}-in-{namespace}"
        folder.mkdir(exist_ok=True)
        path = os.path.relpath(OVERLAYS / overlay, folder.resolve())
        content = {"namespace": namespace, "resources": [path], **changes}
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
        self.apply("--kustomize", folder)

    def apply(self, *source: str | Path, content: str = "") -> None:
        """Applies what an option of kubectl names. Raises AssertionError where the API refuses it, or warns."""
        self.control_plane.kubectl("apply", "--server-side", "--warnings-as-errors", *source, content=content)

    def objects(self, namespace: str, *kinds: str, selector: str = "") -> list[dict[str, Any]]:
        """The objects of some kinds in a namespace, such as `pods` or `jobsets`."""
        command = ["get", ",".join(kinds), "--namespace", namespace, "--selector", selector, "--output=json"]
        items: list[dict[str, Any]] = yaml.safe_load(self.control_plane.kubectl(*command))["items"]
        return items
