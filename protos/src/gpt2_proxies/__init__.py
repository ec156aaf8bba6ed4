"""Proxy settings of the environment: loopback bypasses proxies, and errors name the proxy that is used."""

import os
import urllib.request
from collections.abc import Mapping, MutableMapping
from http.client import HTTPResponse
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1", "127.0.0.0/8")
"""Entries for `no_proxy`; HTTP clients differ in the forms that they understand."""

_GRPC = ("grpc_proxy", "https_proxy", "http_proxy")
"""Variables that gRPC takes its proxy from, in order of precedence."""
_WEB = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


def exempt_loopback(environment: MutableMapping[str, str] = os.environ) -> None:
    """Adds loopback to `no_proxy`, which HTTP clients, gRPC and child processes respect."""
    lower, upper = environment.get("no_proxy", ""), environment.get("NO_PROXY", "")
    wanted = {"no_proxy": lower or upper, "NO_PROXY": upper or lower}
    if environment.get("no_grpc_proxy"):
        wanted["no_grpc_proxy"] = environment["no_grpc_proxy"]
    for name, value in wanted.items():
        entries = _entries(value)
        environment[name] = ",".join([*entries, *(entry for entry in LOOPBACK if entry not in entries)])


def is_loopback(host: str) -> bool:
    """Whether a host name or address, without a port, is loopback."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


def channel_options(target: str) -> list[tuple[str, int]]:
    """Options of a gRPC channel; loopback targets bypass proxies."""
    return [("grpc.enable_http_proxy", 0)] if _is_local_target(target) else []


def grpc_proxy_note(target: str, environment: Mapping[str, str] = os.environ) -> str:
    """Addition to an error about a gRPC target that a proxy is used for; empty without a proxy."""
    host = _grpc_host(target)
    if _is_local_target(target) or _is_exempt(
        host, environment.get("no_grpc_proxy") or environment.get("no_proxy", "")
    ):
        return ""
    return _note(host, _GRPC, environment)


def web_proxy_note(url: str, environment: Mapping[str, str] = os.environ) -> str:
    """Addition to an error about a URL that a proxy is used for; empty without a proxy."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    exempt = environment.get("no_proxy") or environment.get("NO_PROXY", "")
    if not host or is_loopback(host) or _is_exempt(host, exempt):
        return ""
    names = [name for base in (f"{parts.scheme}_proxy", "all_proxy") for name in (base, base.upper())]
    return _note(host, names, environment)


def opener_for(url: str, *handlers: urllib.request.BaseHandler) -> urllib.request.OpenerDirector:
    """An opener with these handlers, which uses no proxy where a URL is on loopback."""
    direct = [urllib.request.ProxyHandler({})] if is_loopback(urlsplit(url).hostname or "") else []
    return urllib.request.build_opener(*direct, *handlers)


def open_url(url: str, timeout_seconds: float) -> HTTPResponse:
    """Opens a URL as `urllib.request.urlopen` does, without a proxy for loopback. Raises OSError."""
    answer: HTTPResponse = opener_for(url).open(url, timeout=timeout_seconds)
    return answer


def describe_proxies(environment: Mapping[str, str] = os.environ) -> str:
    """The proxies that the environment names, without their passwords."""
    return ", ".join(f"{name}={redacted(environment[name])}" for name in ("grpc_proxy", *_WEB) if environment.get(name))


def redacted(proxy: str) -> str:
    """A proxy's address without user and password."""
    scheme, separator, rest = proxy.rpartition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}{separator}{'***' if user else ''}{at}{host}"


def _note(host: str, names: list[str] | tuple[str, ...], environment: Mapping[str, str]) -> str:
    name = next((name for name in names if environment.get(name)), None)
    if name is None:
        return ""
    proxy = redacted(environment[name])
    return f"; {name} routes it through the proxy {proxy}: add {host} to no_proxy to bypass it"


def _is_local_target(target: str) -> bool:
    return target.startswith(("unix:", "unix-abstract:")) or is_loopback(_grpc_host(target))


def _grpc_host(target: str) -> str:
    """Host of a gRPC target such as `host:50051`, `[::1]:50051`, `dns:///host:50051` or `ipv4:127.0.0.1:50051`."""
    address = target.rpartition("/")[2]
    for scheme in ("dns:", "ipv4:", "ipv6:"):
        address = address.removeprefix(scheme)
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address if address.count(":") > 1 else address.partition(":")[0]


def _is_exempt(host: str, no_proxy: str) -> bool:
    entries = _entries(no_proxy)
    if any(entry == "*" or f".{host}".endswith(f".{entry.lstrip('.')}") for entry in entries):
        return True
    try:
        address = ip_address(host)
        return any(address in ip_network(entry, strict=False) for entry in entries if "/" in entry)
    except ValueError:
        return False


def _entries(no_proxy: str) -> list[str]:
    return [entry.strip() for entry in no_proxy.split(",") if entry.strip()]
