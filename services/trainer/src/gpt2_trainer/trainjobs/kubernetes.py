"""The few calls of the Kubernetes API that following a TrainJob takes, over its REST interface.

`orchestration/kubernetes/components/trainjob` has the Role that allows them, and no more.
"""

import logging
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from gpt2_common.errors import FailedPrecondition, Unavailable
from gpt2_common.settings import SettingsError
from gpt2_trainer.trainjobs.settings import TrainJobSettings

_log = logging.getLogger(__name__)
_TRAINJOBS = "apis/trainer.kubeflow.org/v1alpha1"
_ANSWER_SECONDS = 30.0
_LINE_BYTES = 1 << 20
_TAIL_LINES = 200
MANAGED_BY = "gpt2-trainer"
"""Value of the label `app.kubernetes.io/managed-by` of each TrainJob."""


@dataclass(frozen=True, kw_only=True)
class ClusterAddress:
    """Where the Kubernetes API is, and what shows who asks."""

    url: str
    namespace: str
    credentials: Path

    @classmethod
    def of(cls, settings: TrainJobSettings, environment: Mapping[str, str] = os.environ) -> "ClusterAddress":
        """Finds the API. Raises SettingsError where nothing says where it is."""
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
        return await self._call("POST", _TRAINJOBS, "trainjobs", content=trainjob, no=(409,)) is not None

    async def get(self, name: str) -> dict[str, Any] | None:
        """A TrainJob; None when there is none of that name."""
        return await self._call("GET", _TRAINJOBS, f"trainjobs/{name}", no=(404,))

    async def delete(self, name: str, uid: str = "") -> None:
        """Deletes a TrainJob with its pods, where it is there; with a `uid` that one alone, not a later one."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}
        content = {**options, "preconditions": {"uid": uid}} if uid else options
        await self._call("DELETE", _TRAINJOBS, f"trainjobs/{name}", content=content, no=(404, 409))

    async def own_trainjobs(self) -> list[dict[str, Any]]:
        """The TrainJobs that trainers have created in the namespace."""
        return await self._list(_TRAINJOBS, "trainjobs", f"app.kubernetes.io/managed-by={MANAGED_BY}")

    async def newest_pod(self, name: str) -> dict[str, Any] | None:
        """The pod of a TrainJob that was created last; None before there is one."""
        pods = await self._list("api/v1", "pods", f"jobset.sigs.k8s.io/jobset-name={name}")
        return max(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)

    async def log(self, pod: str) -> AsyncIterator[str]:
        """Yields the last lines of a pod's log, and each new one until its container ends or the line breaks."""
        query = {"container": "node", "follow": "true", "tailLines": str(_TAIL_LINES)}
        # A line that is still alive may be silent for as long as a step takes.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_ANSWER_SECONDS)
        try:
            async with self._answer("GET", "api/v1", f"pods/{pod}/log", query, timeout=timeout) as answer:
                if answer.status in (400, 404):
                    return  # its container has not started, or the pod is gone
                await self._require_success(answer)
                async for line in answer.content:
                    yield line.decode(errors="replace").rstrip("\n")
        except (aiohttp.ClientError, TimeoutError, ValueError, Unavailable) as error:
            _log.info("the log of pod %s is lost, and asked for again: %s", pod, error)

    async def _list(self, group: str, kind: str, selector: str) -> list[dict[str, Any]]:
        answer = await self._call("GET", group, kind, {"labelSelector": selector}) or {}
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
        no: tuple[int, ...] = (),
    ) -> dict[str, Any] | None:
        """Makes a call. Returns its answer; None for a status that says no to what was asked."""
        timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
        try:
            async with self._answer(method, group, path, query, timeout=timeout, json=content) as answer:
                if answer.status in no:
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
        text = await answer.text()
        if answer.status == 429 or answer.status >= 500:
            raise Unavailable(f"the Kubernetes API at {self._address.url} cannot now ({answer.status}): {text[:500]}")
        advice = {
            401: "the token in GPT2_KUBERNETES_CREDENTIALS is not valid",
            403: "the trainer's service account needs the Role of orchestration/kubernetes/components/trainjob",
            404: "Kubeflow Trainer v2 is not installed in the cluster, or the namespace is missing",
        }.get(answer.status, "the TrainJob does not fit the cluster's Kubeflow Trainer")
        raise FailedPrecondition(f"the Kubernetes API refuses ({answer.status}): {advice}: {text[:500]}")


@asynccontextmanager
async def connect_kubernetes(address: ClusterAddress) -> AsyncIterator[Kubernetes]:
    """Connects to a cluster. Raises FailedPrecondition when its authority cannot be read."""
    verify: ssl.SSLContext | bool = True
    if address.url.startswith("https://"):
        try:
            verify = ssl.create_default_context(cafile=str(address.credentials / "ca.crt"))
        except OSError as error:
            raise FailedPrecondition(f"GPT2_KUBERNETES_CREDENTIALS: ca.crt cannot be read: {error}") from error
    connector = aiohttp.TCPConnector(ssl=verify)
    async with aiohttp.ClientSession(connector=connector, read_bufsize=_LINE_BYTES) as session:
        yield Kubernetes(address, session)
