"""A pod of the kubelet's stand-in: its containers are processes of this machine, its status is a kubelet's.

A process shares this machine's files and network: nothing is mounted, isolated or limited.
"""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests

from .api import Api
from .container_environment import MissingReference, container_environment, expand

_LOOK_SECONDS = 0.1
_CODE_OF_SIGNAL = 128


@dataclass(frozen=True)
class Image:
    """What stands for a container image.

    Attributes:
        entrypoint: What runs where the container has no command.
        environment: Variables that the image sets.
    """

    entrypoint: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class _Container:
    """A container; without a process until it starts, or where it never could."""

    spec: Mapping[str, Any]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    waiting: tuple[str, str] = ("ContainerCreating", "")
    started: str = ""
    finished: str = ""
    end_reason: str = ""

    @property
    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def describe(self) -> dict[str, Any]:
        """Its entry in the pod's status."""
        image = self.spec["image"]
        status = {"name": self.spec["name"], "image": image, "imageID": image, "restartCount": 0, "lastState": {}}
        code = None if self.process is None else self.process.poll()
        if self.process is None:
            reason, message = self.waiting
            state: dict[str, Any] = {"waiting": {"reason": reason, "message": message}}
        elif code is None:
            state = {"running": {"startedAt": self.started}}
        else:
            code = code if code >= 0 else _CODE_OF_SIGNAL - code
            reason = self.end_reason or ("Error" if code else "Completed")
            ended = {"exitCode": code, "reason": reason, "startedAt": self.started, "finishedAt": self.finished}
            state = {"terminated": ended}
        is_running = "running" in state
        return {**status, "state": state, "ready": is_running, "started": is_running}


class Pod:
    """A pod bound to a node, from its first look at it until it is gone.

    Args:
        found: The object.
        folder: Where its containers work, and their logs lie.
        api: The API, for the node.
        images: What stands for images, by their names without tag and digest. It may change.
    """

    def __init__(self, found: Mapping[str, Any], folder: Path, api: Api, images: Mapping[str, Image]) -> None:
        metadata = found["metadata"]
        self.name, self.namespace, self.uid = metadata["name"], metadata["namespace"], metadata["uid"]
        self._found, self._folder, self._api, self._images = found, folder, api, images
        folder.mkdir()
        self._containers = [_Container(spec, folder / f"{spec['name']}.log") for spec in found["spec"]["containers"]]
        self._conditions: list[dict[str, Any]] = []
        self._reason = ""
        self._reported: dict[str, Any] = {}
        self._started = _now()
        self._changed = threading.Event()
        self._deletion: int | None = None
        self._lost = False
        self._thread = threading.Thread(target=self._live, name=f"pod {self.name}", daemon=True)
        self._thread.start()

    def process(self, container: str = "") -> subprocess.Popen[bytes] | None:
        """The process of a container, or of the first one; None before it has started."""
        return self._container(container).process

    def log(self, container: str = "") -> Path:
        """The file with a container's log."""
        return self._container(container).log

    @property
    def ended(self) -> bool:
        """Whether it has no process that runs, and will have none."""
        return not self._thread.is_alive() or all(container.ended for container in self._containers)

    def delete(self, grace_seconds: int) -> None:
        """Stops its processes, with SIGKILL after a time. It is then removed from the API."""
        if self._deletion is None:
            self._deletion = grace_seconds
            self._changed.set()

    def kill(self, reason: str = "") -> None:
        """Kills its processes, as the kernel does for want of memory: reason `OOMKilled`."""
        for container in self._containers:
            container.end_reason = reason
        self._signal(signal.SIGKILL)

    def evict(self) -> None:
        """Ends it as a kubelet does whose node is short of memory: at once."""
        self._reason = "Evicted"
        self._conditions = [_condition("DisruptionTarget", reason="TerminationByKubelet")]
        self._signal(signal.SIGKILL)

    def lose(self) -> None:
        """Kills its processes without a report, as they end with their node."""
        self._lost = True
        self._changed.set()
        self._signal(signal.SIGKILL)
        self._thread.join()

    def _live(self) -> None:
        while not self._lost:
            try:
                if self._deletion is not None:
                    self._stop(self._deletion)
                else:
                    self._advance()
                if not self._lost:
                    self._report()
                    if self._deletion is not None:
                        path = f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"
                        self._api.delete(path, gracePeriodSeconds=0, preconditions={"uid": self.uid})
                        return
            except (requests.RequestException, AssertionError) as error:
                # As a kubelet: tried again, for as long as it takes.
                print(f"pod {self.name}: {error}", file=sys.stderr)
            self._changed.wait(_LOOK_SECONDS)
            self._changed.clear()

    def _advance(self) -> None:
        for container in self._containers:
            if container.process is None and not self._lost:
                self._start(container)
            if container.ended and not container.finished:
                container.finished = _now()

    def _start(self, container: _Container) -> None:
        name = container.spec["image"].partition("@")[0]
        name = name.rpartition(":")[0] if ":" in name.rpartition("/")[2] else name
        image = self._images.get(name)
        if image is None:
            container.waiting = ("ImagePullBackOff", f'Back-off pulling image "{container.spec["image"]}"')
            return
        try:
            variables = container_environment(self._found, container.spec, self._get)
        except MissingReference as error:
            container.waiting = ("CreateContainerConfigError", str(error))
            return
        words = [*container.spec.get("command", image.entrypoint), *container.spec.get("args", [])]
        base = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(self._folder)}
        with container.log.open("wb") as log:
            container.process = subprocess.Popen(
                [expand(word, variables) for word in words],
                env={**base, **image.environment, **self._resolved(variables)},
                cwd=self._folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        container.started = _now()

    def _resolved(self, variables: Mapping[str, str]) -> dict[str, str]:
        """Variables with this machine's address for each host name of a pod, which no name server here knows."""
        subdomain = self._found["spec"].get("subdomain")
        if not subdomain:
            return dict(variables)
        host = re.compile(rf"\b[a-z0-9-]+\.{re.escape(subdomain)}\b")
        return {name: host.sub("127.0.0.1", value) for name, value in variables.items()}

    def _get(self, path: str) -> Mapping[str, Any] | None:
        return self._api.get(f"/api/v1/namespaces/{self.namespace}/{path}")

    def _stop(self, grace_seconds: int) -> None:
        self._signal(signal.SIGTERM)
        for container in self._containers:
            if container.process is not None:
                try:
                    container.process.wait(grace_seconds)
                except subprocess.TimeoutExpired:
                    self._signal(signal.SIGKILL)
                    container.process.wait()
                container.finished = container.finished or _now()

    def _signal(self, number: int) -> None:
        for container in self._containers:
            if container.process is not None and container.process.poll() is None:
                os.killpg(container.process.pid, number)

    def _report(self) -> None:
        status = self._status()
        if status == self._reported:
            return
        path = f"/api/v1/namespaces/{self.namespace}/pods/{self.name}/status"
        patch = {"metadata": {"uid": self.uid}, "status": status}
        self._api.patch(path, patch)
        self._reported = status

    def _status(self) -> dict[str, Any]:
        statuses = [container.describe() for container in self._containers]
        codes = [status["state"].get("terminated", {}).get("exitCode") for status in statuses]
        if self._deletion is not None and None in codes:
            codes = [code or 0 for code in codes]  # one that never started
            phase = "Failed"
        elif None not in codes:
            phase = "Failed" if any(codes) or self._reason else "Succeeded"
        else:
            phase = "Running" if any(container.process for container in self._containers) else "Pending"
        is_ready = all(status["ready"] for status in statuses)
        conditions = [_condition(kind, is_ready) for kind in ("Ready", "ContainersReady")]
        return {
            "phase": phase,
            "reason": self._reason,
            "startTime": self._started,
            "hostIP": "127.0.0.1",
            "podIP": "127.0.0.1",
            "conditions": [*conditions, *self._conditions],
            "containerStatuses": statuses,
        }

    def _container(self, name: str) -> _Container:
        return next(item for item in self._containers if name in ("", item.spec["name"]))


def _condition(kind: str, is_true: bool = True, reason: str = "") -> dict[str, Any]:
    return {"type": kind, "status": str(is_true), "reason": reason}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
