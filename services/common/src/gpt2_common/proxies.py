"""Proxies of the environment: loopback addresses never go through one, and errors name the one that is used."""

import os
import urllib.request
from collections.abc import MutableMapping
from ipaddress import ip_address
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1", "127.0.0.0/8")
"""Entries for `no_proxy`; clients differ in which of these they understand."""


def exempt_loopback(environment: MutableMapping[str, str] = os.environ) -> None:
    """Adds loopback to `no_proxy`, which every HTTP client, gRPC and all children of this process go by."""
    lower, upper = environment.get("no_proxy", ""), environment.get("NO_PROXY", "")
    wanted = {"no_proxy": lower or upper, "NO_PROXY": upper or lower}
    if environment.get("no_grpc_proxy"):
        wanted["no_grpc_proxy"] = environment["no_grpc_proxy"]
    for name, value in wanted.items():
        entries = [entry.strip() for entry in value.split(",") if entry.strip()]
        environment[name] = ",".join([*entries, *(entry for entry in LOOPBACK if entry not in entries)])


def is_loopback(host: str) -> bool:
    """Whether a host name or address, without a port, is this machine's own."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)


def opener_for(url: str, *handlers: urllib.request.BaseHandler) -> urllib.request.OpenerDirector:
    """An opener with these handlers, which goes through no proxy where a URL is this machine's own."""
    direct = [urllib.request.ProxyHandler({})] if is_loopback(urlsplit(url).hostname or "") else []
    return urllib.request.build_opener(*direct, *handlers)


def proxy_note(url: str) -> str:
    """What an error adds on a URL that goes through a proxy of the environment; empty where none is."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if not host or is_loopback(host) or urllib.request.proxy_bypass(host):
        return ""
    names = [name for base in (f"{parts.scheme}_proxy", "all_proxy") for name in (base, base.upper())]
    name = next((name for name in names if os.environ.get(name)), None)
    if name is None:
        return ""
    return (
        f"; {name} sends it through the proxy {redacted(os.environ[name])}: add {host} to no_proxy where that is wrong"
    )


def redacted(proxy: str) -> str:
    """A proxy's address without user and password."""
    scheme, separator, rest = proxy.rpartition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}{separator}{'***' if user else ''}{at}{host}"
