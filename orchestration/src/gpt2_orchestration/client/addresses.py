"""The services by name, with their default ports and the variables of their addresses."""

from collections.abc import Mapping

from gpt2_catalogue import catalogue
from gpt2_orchestration.stack.settings import SERVICE_PORTS


def _default_ports() -> Mapping[str, int]:
    """Ports of the known services; those that other packages add to the catalogue follow by name."""
    added = sorted(set(catalogue().services) - set(SERVICE_PORTS))
    return {**SERVICE_PORTS, **{service: port for port, service in enumerate(added, max(SERVICE_PORTS.values()) + 1)}}


DEFAULT_PORTS: Mapping[str, int] = _default_ports()
"""The services, and the ports that they serve on by default."""


def address_variable(service: str) -> str:
    """Name of the environment variable with a service's `host:port`."""
    return f"GPT2_{service.upper()}_ADDRESS"
