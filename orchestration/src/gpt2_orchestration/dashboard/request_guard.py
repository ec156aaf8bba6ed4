"""Checks every request before it is handled, and sets security headers on every response.

The page has no login, so a foreign page in the same browser must not be able to use it: the Host header must be a
configured name (against DNS rebinding), and a request that changes something must be JSON with a custom header, which
another origin can send only after a CORS preflight, and must not name another origin.
"""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpt2_orchestration.dashboard.errors import problem

OWN_HEADER = "x-gpt2-dashboard"

_SAFE_METHODS = ("GET", "HEAD")
_ANSWER_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


class Guard:
    """Refuses what other sites send, and adds the headers.

    Args:
        app: What is guarded.
        host_names: Names, without a port, that a Host header may have.
    """

    def __init__(self, app: ASGIApp, host_names: Collection[str]) -> None:
        self._app = app
        self._host_names = frozenset(host_names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Takes one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_ANSWER_HEADERS)
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        # Probes have no name for the server; they learn nothing here.
        if scope["path"] != "/healthz" and _name(host) not in self._host_names:
            return problem(
                421, "MISDIRECTED", f"this server is not called {_name(host)!r}: add the name to GPT2_DASHBOARD_HOSTS"
            )
        if scope["method"] not in _SAFE_METHODS and not _is_own(headers, host):
            return problem(
                403, "FORBIDDEN", "changes are taken from the dashboard's own page alone: reload it, and try again"
            )
        return None


def _is_own(headers: Headers, host: str) -> bool:
    origin = headers.get("origin")
    return (
        headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
        and OWN_HEADER in headers
        and headers.get("sec-fetch-site", "same-origin") == "same-origin"
        and (origin is None or urlsplit(origin).netloc.lower() == host.lower())
    )


def _name(host: str) -> str:
    """A Host header without its port, in lower case."""
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdecimal() else host.lower()
