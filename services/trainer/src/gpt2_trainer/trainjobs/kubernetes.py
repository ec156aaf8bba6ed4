"""The few calls of the Kubernetes API that following a TrainJob takes, over its REST interface.

`orchestration/kubernetes/components/trainjob` has the Role that allows them, and no more.
"""

import json
import logging
import os
import re
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from gpt2_common.errors import FailedPrecondition, ResourceExhausted, Unavailable
from gpt2_common.settings import SettingsError
from gpt2_trainer.settings import TrainerSettings
from gpt2_trainer.trainjobs.manifest import MANAGED_BY

_log = logging.getLogger(__name__)
_TRAINJOBS = "apis/trainer.kubeflow.org/v1alpha1"
_ANSWER_SECONDS = 30.0
_WATCH_SECONDS = 20
"""Time after which the API server ends a watch, and the object is read again."""
_LOG_SECONDS = 60.0
"""Time without a line after which a log is asked for again: its connection may be lost without a sign."""
_LINE_BYTES = 1 << 20
_TAIL_LINES = 200
_MAX_MESSAGE_LENGTH = 1000
_KEEPALIVE = {socket.TCP_KEEPIDLE: 15, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}
"""Seconds and probes until a connection whose other side is gone is closed."""
_JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
_NODE_ANNOTATION = "batch.kubernetes.io/job-completion-index"
_DESCENDANTS = (
    ("apis/jobset.x-k8s.io/v1alpha2", "jobsets", "fieldSelector", "metadata.name={name}"),
    ("apis/batch/v1", "jobs", "labelSelector", f"{_JOBSET_LABEL}={{name}}"),
    ("api/v1", "pods", "labelSelector", f"{_JOBSET_LABEL}={{name}}"),
)
"""What controllers make of a TrainJob, each of the one before: API group, resource, and what selects that of a name."""
_MISSING_RIGHT = re.compile(r'User ".*" cannot \w+ resource')
"""How the API server tells that RBAC refuses; webhooks, quotas and Pod Security refuse with the same status."""


@dataclass(frozen=True, kw_only=True)
class ClusterAddress:
    """Where the Kubernetes API is, and what shows who asks."""

    url: str
    namespace: str
    credentials: Path

    @classmethod
    def of(cls, settings: TrainerSettings, environment: Mapping[str, str] = os.environ) -> "ClusterAddress":
        """Finds the API. Raises SettingsError where its address is not set."""
        host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
        own = f"https://{f'[{host}]' if host and ':' in host else host}:{port}" if host else ""
        url = settings.kubernetes_api.rstrip("/") or own
        if not url:
            raise SettingsError("GPT2_KUBERNETES_API: is needed for TrainJobs, as this is no pod of a cluster")
        try:
            namespace = settings.trainjob_namespace or (settings.kubernetes_credentials / "namespace").read_text()
        except OSError as error:
            raise SettingsError(f"GPT2_TRAINJOB_NAMESPACE: is needed, as there is no {error.filename}") from error
        return cls(url=url, namespace=namespace.strip(), credentials=settings.kubernetes_credentials)


class Kubernetes:
    """The API of one cluster, for the TrainJobs of one namespace.

    Each call raises Unavailable when the API does not answer, or answers that it cannot now, and FailedPrecondition
    when it refuses.

    Args:
        address: Where it is.
        session: Carries the calls.
    """

    def __init__(self, address: ClusterAddress, session: aiohttp.ClientSession) -> None:
        self._address = address
        self._session = session

    async def create(self, trainjob: Mapping[str, Any]) -> bool:
        """Creates a TrainJob. Returns whether there was none of its name."""
        return await self._call("POST", _TRAINJOBS, "trainjobs", content=trainjob, absent=(409,)) is not None

    async def get(self, name: str) -> dict[str, Any] | None:
        """A TrainJob; None when there is none of that name."""
        return await self._call("GET", _TRAINJOBS, f"trainjobs/{name}", absent=(404,))

    async def watch(self, name: str) -> AsyncGenerator[dict[str, Any] | None, None]:
        """Yields a TrainJob as it is now and after each change, for some seconds; None once there is none.

        Raises Unavailable also when the connection is lost in between: watch it again.
        """
        trainjob = await self.get(name)
        yield trainjob
        if trainjob is None:
            return
        query = {
            "watch": "true",
            "fieldSelector": f"metadata.name={name}",
            "resourceVersion": trainjob["metadata"]["resourceVersion"],
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        timeout = aiohttp.ClientTimeout(total=_WATCH_SECONDS + _ANSWER_SECONDS / 2)
        try:
            async with self._answer("GET", _TRAINJOBS, "trainjobs", query, timeout=timeout) as answer:
                await self._require_success(answer)
                async for line in answer.content:
                    event = json.loads(line)
                    if event["type"] not in ("ADDED", "MODIFIED"):
                        return  # it is deleted, or the version is too old to watch from: the next call finds out
                    yield event["object"]
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Unavailable(f"the watch of TrainJob {name} is lost: {error!r}") from error

    async def delete(self, name: str, uid: str = "") -> None:
        """Deletes a TrainJob, where it is there; with a `uid` that one alone, not a later one.

        In the background: while a TrainJob waits for its JobSet to be deleted, Kubeflow Trainer makes that again.
        """
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        content = {**options, "preconditions": {"uid": uid}} if uid else options
        await self._call("DELETE", _TRAINJOBS, f"trainjobs/{name}", content=content, absent=(404, 409))

    async def is_gone(self, name: str) -> bool:
        """Whether neither a TrainJob nor anything that was made of it is left, pods that still stop among it."""
        if await self.get(name) is not None:
            return False
        for group, kind, selector, value in _DESCENDANTS:
            if await self._list(group, kind, {selector: value.format(name=name)}):
                return False
        return True

    async def own_trainjobs(self) -> list[dict[str, Any]]:
        """The TrainJobs that trainers have created in the namespace."""
        return await self._list(
            _TRAINJOBS, "trainjobs", {"labelSelector": f"app.kubernetes.io/managed-by={MANAGED_BY}"}
        )

    async def newest_pods(self, name: str) -> dict[int, dict[str, Any]]:
        """Of each node of a TrainJob the pod that was created last, by the node's number, in order."""
        pods = await self._list("api/v1", "pods", {"labelSelector": f"{_JOBSET_LABEL}={name}"})
        pods.sort(key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
        newest = {int(pod["metadata"].get("annotations", {}).get(_NODE_ANNOTATION, "0")): pod for pod in pods}
        return dict(sorted(newest.items()))

    async def log(self, pod: str, *, follow: bool, since_seconds: int | None = None) -> AsyncGenerator[str, None]:
        """Yields lines of a pod's log: the last ones, and with `follow` each new one until its container ends.

        A log that cannot be read, or whose connection is lost, ends early without an error.

        Args:
            pod: The pod's name.
            follow: Whether to wait for more.
            since_seconds: How old lines may be; None: any age.
        """
        query = {"container": "node", "follow": str(follow).lower(), "tailLines": str(_TAIL_LINES)}
        if since_seconds is not None:
            query["sinceSeconds"] = str(since_seconds)
        total = None if follow else _ANSWER_SECONDS
        timeout = aiohttp.ClientTimeout(total=total, sock_connect=_ANSWER_SECONDS, sock_read=_LOG_SECONDS)
        try:
            async with self._answer("GET", "api/v1", f"pods/{pod}/log", query, timeout=timeout) as answer:
                if answer.status in (400, 404):
                    return  # its container has not started, or the pod is gone
                await self._require_success(answer)
                async for line in answer.content:
                    yield line.decode(errors="replace").rstrip("\n")
        except (aiohttp.ClientError, TimeoutError, ValueError, Unavailable) as error:
            _log.info("the log of pod %s is lost: %r", pod, error)

    async def _list(self, group: str, kind: str, selector: Mapping[str, str]) -> list[dict[str, Any]]:
        answer = await self._call("GET", group, kind, selector) or {}
        items: list[dict[str, Any]] = answer.get("items", [])
        return items

    async def _call(
        self,
        method: str,
        group: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        content: Mapping[str, Any] | None = None,
        absent: tuple[int, ...] = (),
    ) -> dict[str, Any] | None:
        """Makes a call. Returns its answer; None for a status in `absent`."""
        timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
        try:
            async with self._answer(method, group, path, query, timeout=timeout, json=content) as answer:
                if answer.status in absent:
                    return None
                await self._require_success(answer)
                found: dict[str, Any] = await answer.json()
                return found
        except (aiohttp.ClientError, TimeoutError) as error:
            raise Unavailable(f"the Kubernetes API at {self._address.url} does not answer: {error}") from error

    @asynccontextmanager
    async def _answer(
        self, method: str, group: str, path: str, query: Mapping[str, str] | None, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        url = f"{self._address.url}/{group}/namespaces/{self._address.namespace}/{path}"
        # Read for each call, as the cluster replaces tokens before they end.
        try:
            token = (self._address.credentials / "token").read_text().strip()
        except OSError as error:
            raise FailedPrecondition(f"GPT2_KUBERNETES_CREDENTIALS: token cannot be read: {error}") from error
        headers = {"Authorization": f"Bearer {token}"}
        async with self._session.request(method, url, params=query, headers=headers, **options) as answer:
            yield answer

    async def _require_success(self, answer: aiohttp.ClientResponse) -> None:
        if answer.ok:
            return
        message = _message_of(await answer.text())
        if answer.status == 429 or answer.status >= 500:
            raise Unavailable(f"the Kubernetes API at {self._address.url} cannot now ({answer.status}): {message}")
        if answer.status == 403 and not _MISSING_RIGHT.search(message):
            if "exceeded quota" in message:
                raise ResourceExhausted(f"a quota of the namespace refuses the TrainJob: {message}")
            raise FailedPrecondition(f"the cluster's admission refuses the TrainJob: {message}")
        advice = {
            401: "the token in GPT2_KUBERNETES_CREDENTIALS is not valid",
            403: "the trainer's service account needs the Role of orchestration/kubernetes/components/trainjob",
            404: "Kubeflow Trainer v2 is not installed in the cluster, or the namespace is missing",
        }.get(answer.status, "the TrainJob does not fit the cluster's Kubeflow Trainer")
        raise FailedPrecondition(f"the Kubernetes API refuses ({answer.status}): {advice}: {message}")


def _message_of(text: str) -> str:
    """The message of a Status of the Kubernetes API; other text as it is."""
    try:
        message = json.loads(text)["message"]
    except (ValueError, KeyError, TypeError):
        message = text
    return str(message)[:_MAX_MESSAGE_LENGTH]


def _keepalive_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket whose connection ends soon when the other side is gone."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


@asynccontextmanager
async def connect_kubernetes(address: ClusterAddress) -> AsyncIterator[Kubernetes]:
    """Connects to a cluster. Raises FailedPrecondition when its authority cannot be read."""
    verify: ssl.SSLContext | bool = True
    if address.url.startswith("https://"):
        try:
            verify = ssl.create_default_context(cafile=str(address.credentials / "ca.crt"))
        except OSError as error:
            raise FailedPrecondition(f"GPT2_KUBERNETES_CREDENTIALS: ca.crt cannot be read: {error}") from error
    connector = aiohttp.TCPConnector(ssl=verify, socket_factory=_keepalive_socket)
    async with aiohttp.ClientSession(connector=connector, read_bufsize=_LINE_BYTES) as session:
        yield Kubernetes(address, session)
