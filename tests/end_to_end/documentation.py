"""The commands that the documentation shows: found by their marks, and run in a folder with the stack up in it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
_DEFAULT_PORTS = {"exporter": "50051", "tokenizer": "50052", "trainer": "50053", "registry": "50054"}


def all_blocks(page: Path) -> list[tuple[str, str]]:
    """The blocks of commands of a page: what each is marked with, and the commands."""
    return re.findall(r"^```sh ?([^\n]*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def blocks(page: str, mark: str) -> list[str]:
    """The blocks of a page, by its path in the repository, that are marked with a word."""
    return [commands for found, commands in all_blocks(ROOT / page) if found == mark]


class Reader:
    """Somebody who follows the documentation beside a running stack.

    Args:
        stack: The stack.
        grpcurl: Folder with a `grpcurl`.
    """

    def __init__(self, stack, grpcurl: Path) -> None:
        self.folder = stack.folder.parent
        self._addresses = stack.addresses
        self._services = stack.client.addresses
        for name, target in {".venv": Path(sys.prefix), "orchestration": ROOT / "orchestration"}.items():
            if not (self.folder / name).exists():
                (self.folder / name).symlink_to(target)
        variables = {f"GPT2_{service.upper()}_ADDRESS": address for service, address in self._services.items()}
        variables["GPT2_KAFKA_BOOTSTRAP_SERVERS"] = stack.addresses.kafka_bootstrap_servers
        self.environment = {**os.environ, **variables, "PATH": f"{grpcurl}:{os.environ['PATH']}"}

    def here(self, commands: str) -> str:
        """The commands with the addresses of this stack, whose ports are others than the usual ones."""
        for service, address in self._services.items():
            commands = commands.replace(f"localhost:{_DEFAULT_PORTS[service]}", address)
        commands = commands.replace("mongodb://localhost:27017", self._addresses.mongodb_uri)
        return commands.replace("http://localhost:5000", self._addresses.mlflow_uri)

    def run(self, commands: str) -> str:
        """Runs commands, each of which must succeed. Returns what they print."""
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.here(commands)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert result.returncode == 0, f"{commands}\n{result.stdout}\n{result.stderr}"
        return result.stdout


@contextmanager
def served(reader: Reader, commands: str) -> Iterator[str]:
    """Runs commands that serve a model on port 5001, on another port. Gives the address; ends the server after."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    log = reader.folder / f"serve-{port}.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            ["bash", "-c", f"exec env {reader.here(commands).replace('5001', str(port))}"],
            cwd=reader.folder,
            env=reader.environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 300
        while not _answers(f"http://127.0.0.1:{port}/ping"):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield f"127.0.0.1:{port}"
    finally:
        # What answers is a child of it. Where it has ended by itself, its log says why.
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False
