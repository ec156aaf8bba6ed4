"""Calls of a Kubernetes API server, by the certificate or the token of one identity."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import yaml

_ANSWER_SECONDS = 30
_WATCH_SECONDS = 3600
# Conditions are merged by their type, so that those of other writers stay.
_PATCH = "application/strategic-merge-patch+json"


@dataclass(frozen=True)
class Identity:
    """Who asks: a client certificate with its key, or a token."""

    certificate: Path | None = None
    key: Path | None = None
    token: str = ""


@dataclass
class Api:
    """The API server, as one identity sees it.

    Args:
        url: Where it is.
        authority: File of the authority that signed its certificate.
        identity: Who asks.
    """

    url: str
    authority: Path
    identity: Identity
    _session: requests.Session = field(default_factory=requests.Session)

    def __post_init__(self) -> None:
        self._session.trust_env = False  # no proxy leads to loopback
        self._session.verify = str(self.authority)
        if self.identity.certificate:
            self._session.cert = (str(self.identity.certificate), str(self.identity.key))
        if self.identity.token:
            self._session.headers["Authorization"] = f"Bearer {self.identity.token}"

    def copy(self) -> "Api":
        """The same with a separate session, for another thread."""
        return Api(self.url, self.authority, self.identity)

    def call(self, method: str, path: str, content: Any = None, **options: Any) -> requests.Response:
        """Makes a call, whatever its answer is."""
        return self._session.request(method, self.url + path, json=content, timeout=_ANSWER_SECONDS, **options)

    def get(self, path: str, **query: str) -> dict[str, Any] | None:
        """An object or a list of them; None where there is none."""
        answer = self.call("GET", path, params=query)
        return None if answer.status_code == 404 else _content(answer)

    def create(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """Creates an object."""
        return _content(self.call("POST", path, content))

    def patch(self, path: str, content: Mapping[str, Any]) -> dict[str, Any] | None:
        """Merges a patch into an object of Kubernetes itself; None where there is none."""
        answer = self.call("PATCH", path, content, headers={"Content-Type": _PATCH})
        return None if answer.status_code == 404 else _content(answer)

    def delete(self, path: str, **options: Any) -> None:
        """Deletes an object, where it is there and is the one that the preconditions name."""
        answer = self.call("DELETE", path, {"apiVersion": "v1", "kind": "DeleteOptions", **options})
        if answer.status_code not in (404, 409):
            _content(answer)

    def watch(self, path: str, version: str, **query: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields type and object of each change after a version, until the server ends it."""
        parameters = {"watch": "true", "resourceVersion": version, "timeoutSeconds": str(_WATCH_SECONDS), **query}
        timeout = (_ANSWER_SECONDS, _WATCH_SECONDS)
        with self._session.get(self.url + path, params=parameters, stream=True, timeout=timeout) as answer:
            _require_success(answer)
            # Each line is passed on when it is there, not when a buffer is full.
            for line in answer.iter_lines(chunk_size=None):
                event = json.loads(line)
                yield event["type"], event["object"]


def kubeconfig(api: Api) -> str:
    """The text of a kubeconfig, with which programs make the same calls."""
    identity = api.identity
    user = (
        {"client-certificate": str(identity.certificate), "client-key": str(identity.key)}
        if identity.certificate
        else {"token": identity.token}
    )
    cluster = {"server": api.url, "certificate-authority": str(api.authority)}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "cluster", "cluster": cluster}],
        "users": [{"name": "user", "user": user}],
        "contexts": [{"name": "context", "context": {"cluster": "cluster", "user": "user"}}],
        "current-context": "context",
    }
    return yaml.safe_dump(content)


def _content(answer: requests.Response) -> dict[str, Any]:
    _require_success(answer)
    content: dict[str, Any] = answer.json()
    return content


def _require_success(answer: requests.Response) -> None:
    assert answer.ok, f"{answer.request.method} {answer.url}: {answer.status_code}: {answer.text[:2000]}"
