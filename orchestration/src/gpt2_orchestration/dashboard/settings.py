"""Configuration of the dashboard, by environment variables.

    GPT2_DASHBOARD_LISTEN          host:port. Default 127.0.0.1:8090, which no other machine reaches
    GPT2_DASHBOARD_HOSTS           further host names that a browser may use, separated by commas
    GPT2_KAFKA_BOOTSTRAP_SERVERS   Kafka brokers. Default localhost:9092
    GPT2_KAFKA_TOPIC               topic of the events. Default gpt2.stage-events.v1
    GPT2_TENSORBOARD_URI           where TensorBoard shows the artifact root. Default http://localhost:6006
    GPT2_DASHBOARD_TENSORBOARD_LINK, GPT2_DASHBOARD_MLFLOW_LINK
                                   where browsers find them. Default: no link

and those of `gpt2_orchestration.client.service_client` for the services and the token.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from gpt2_contracts.events import DEFAULT_TOPIC
from gpt2_orchestration.client.service_client import ClientSettings
from gpt2_orchestration.errors import InputError

DEFAULT_PORT = 8090
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class SettingsError(InputError):
    """An environment variable is invalid."""


@dataclass(frozen=True, kw_only=True)
class DashboardSettings:
    """Configuration of the dashboard."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    """0 for a free one."""
    host_names: frozenset[str] = frozenset(_LOOPBACK)
    """Names, without a port, under which browsers may call it."""
    client: ClientSettings
    kafka_bootstrap_servers: str = "localhost:9092"
    kafka_topic: str = DEFAULT_TOPIC
    tensorboard_uri: str = "http://localhost:6006"
    tensorboard_link: str = ""
    mlflow_link: str = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "DashboardSettings":
        """Reads the variables that this module's docstring lists. Raises SettingsError."""
        host, port = _listen(environment.get("GPT2_DASHBOARD_LISTEN") or f"127.0.0.1:{DEFAULT_PORT}")
        named = (name.strip().lower() for name in environment.get("GPT2_DASHBOARD_HOSTS", "").split(","))
        return cls(
            host=host,
            port=port,
            host_names=frozenset((*_LOOPBACK, *(name for name in named if name))),
            client=ClientSettings.from_environment(environment),
            kafka_bootstrap_servers=environment.get("GPT2_KAFKA_BOOTSTRAP_SERVERS") or cls.kafka_bootstrap_servers,
            kafka_topic=environment.get("GPT2_KAFKA_TOPIC") or cls.kafka_topic,
            tensorboard_uri=_web_address(environment, "GPT2_TENSORBOARD_URI", cls.tensorboard_uri),
            tensorboard_link=_web_address(environment, "GPT2_DASHBOARD_TENSORBOARD_LINK", ""),
            mlflow_link=_web_address(environment, "GPT2_DASHBOARD_MLFLOW_LINK", ""),
        )


def _listen(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise SettingsError(f"GPT2_DASHBOARD_LISTEN is {address!r}: write HOST:PORT, such as 127.0.0.1:{DEFAULT_PORT}")
    return host.strip("[]"), int(port)


def _web_address(environment: Mapping[str, str], name: str, default: str) -> str:
    address = environment.get(name) or default
    if address != default and not address.startswith(("http://", "https://")):
        raise SettingsError(f"{name} is {address!r}: write an address that begins with http:// or https://")
    return address.rstrip("/")
