"""What tests across services share: the embedded stack, once, with its clients, and how a test tells what it sees."""

import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from go_programs import install_go_program
from pymongo import MongoClient

from gpt2_orchestration.client.service_client import ClientSettings
from gpt2_orchestration.demo.demo import service_addresses
from gpt2_orchestration.stack.addresses import StackAddresses
from gpt2_orchestration.stack.running import running_stack
from gpt2_orchestration.stack.settings import DEFAULT_PORTS, StackSettings


@dataclass(frozen=True)
class RunningStack:
    """A running stack."""

    folder: Path
    addresses: StackAddresses
    client: ClientSettings
    mongodb: MongoClient


@pytest.fixture
def tell(capsys) -> Callable[[str], None]:
    """Prints a line, whatever pytest captures."""

    def line(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}", end="")

    return line


@pytest.fixture(scope="session")
def web_folder(tmp_path_factory) -> Iterator[tuple[Path, str]]:
    """A folder, and the address that a web server shows it at."""
    folder = tmp_path_factory.mktemp("web")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def stack(tmp_path_factory, web_folder, quick_trainings) -> Iterator[RunningStack]:
    folder = tmp_path_factory.mktemp("stack") / ".gpt2"
    environment = {"GPT2_ALLOWED_ROOTS": f"{folder.parent},{web_folder[1]}", **quick_trainings}
    settings = StackSettings(folder=folder, ports=dict.fromkeys(DEFAULT_PORTS, 0), environment=environment)
    with running_stack(settings) as addresses, MongoClient(addresses.mongodb_uri) as mongodb:
        yield RunningStack(folder, addresses, ClientSettings(addresses=service_addresses(addresses)), mongodb)


@pytest.fixture
def service_environment(stack, monkeypatch) -> None:
    """Tells TFX components where the services are, as the environment of a runner does."""
    for service, address in stack.client.addresses.items():
        monkeypatch.setenv(f"GPT2_{service.upper()}_ADDRESS", address)


@pytest.fixture(scope="session")
def grpcurl(tmp_path_factory) -> Path:
    """Folder with a `grpcurl`: built from its Go module where Go is, else a client that does the same by reflection."""
    if shutil.which("go"):
        return install_go_program("github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.3").parent
    folder = tmp_path_factory.mktemp("bin")
    stand_in = folder / "grpcurl"
    stand_in.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("grpcurl.py")} "$@"\n')
    stand_in.chmod(0o755)
    return folder
