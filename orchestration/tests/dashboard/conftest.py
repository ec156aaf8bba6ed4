"""The dashboard as a process, beside a real exporter, Kafka's stand-in and TensorBoard; the other services are away."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpt2_orchestration.client.service_client import ClientSettings
from gpt2_orchestration.stack.definitions import define_stack
from gpt2_orchestration.stack.ports import choose_ports
from gpt2_orchestration.stack.running import supervised
from gpt2_orchestration.stack.settings import DEFAULT_PORTS, StackFolder, StackSettings

OWN_HEADERS = {"content-type": "application/json", "x-gpt2-dashboard": "1"}


@dataclass(frozen=True)
class Dashboard:
    """A running dashboard, and what it asks."""

    address: str
    kafka: str
    tensorboard: str
    folder: Path
    services: ClientSettings

    def get(self, path: str, **headers: str) -> tuple[int, dict]:
        """Status and content of an answer."""
        return self._open(urllib.request.Request(f"http://{self.address}{path}", headers=headers))

    def post(self, path: str, content: object, **headers: str) -> tuple[int, dict]:
        """The same of a change, sent as the page does; a header that is empty is left out."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        chosen = {name: value for name, value in {**OWN_HEADERS, **named}.items() if value}
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return self._open(urllib.request.Request(f"http://{self.address}{path}", data=body, headers=chosen))

    def _open(self, request: urllib.request.Request) -> tuple[int, dict]:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory) -> Iterator[Dashboard]:
    folder = StackFolder.create(tmp_path_factory.mktemp("dashboard"))
    settings = StackSettings(folder=folder.root, ports=dict.fromkeys(DEFAULT_PORTS, 0))
    defined = {
        definition.name: definition for definition in define_stack(settings, folder, choose_ports(settings.ports))
    }
    chosen = [defined[name] for name in ("kafka", "tensorboard", "exporter", "dashboard")]
    with supervised(chosen, folder) as supervisor:
        addresses = supervisor.wait_ready()
        services = {name: defined[name].address for name in ("exporter", "tokenizer", "trainer", "registry")}
        client = ClientSettings(addresses=services)
        yield Dashboard(addresses["dashboard"], addresses["kafka"], addresses["tensorboard"], folder.root, client)
