"""Small processes that stand for servers, and a stack in a separate process that tests can kill."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from gpt2_orchestration.stack.definitions import ProcessDefinition
from gpt2_orchestration.stack.ports import HOST, choose_ports
from gpt2_orchestration.stack.readiness import http_answers
from gpt2_orchestration.stack.settings import StackFolder

SERVER = """
    import http.server, os, signal, sys
    signal.signal(signal.SIGTERM, lambda *_: (print("goodbye", flush=True), sys.exit(0)))
    print("hello", os.environ.get("OTHER", ""), flush=True)
    http.server.test(http.server.SimpleHTTPRequestHandler, port=int(os.environ["PORT"]), bind="127.0.0.1")
"""

SERVICE = """
    import os, signal
    from concurrent.futures import ThreadPoolExecutor
    import grpc
    from grpc_health.v1 import health, health_pb2_grpc
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    server.add_insecure_port(os.environ["GPT2_LISTEN"])
    server.start()
    signal.signal(signal.SIGTERM, lambda *_: server.stop(1))
    server.wait_for_termination()
"""

FOREGROUND = """
    import dataclasses, json, sys
    from pathlib import Path
    from gpt2_orchestration.stack.running import run_until_stopped
    from gpt2_orchestration.stack.settings import DEFAULT_PORTS, StackSettings
    settings = StackSettings(
        folder=Path(sys.argv[1]),
        ports=dict.fromkeys(DEFAULT_PORTS, 0),
        environment={"PYTHONPATH": sys.argv[2]},
    )
    def on_ready(addresses):
        print(json.dumps(dataclasses.asdict(addresses), default=str), flush=True)
    run_until_stopped(settings, on_ready=on_ready)
"""


def wait_until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def script_definition(name: str, script: str, **changes) -> ProcessDefinition:
    port = choose_ports({name: 0})[name]
    fields = {
        "command": (sys.executable, "-c", textwrap.dedent(script)),
        "address": f"{HOST}:{port}",
        "is_ready": partial(http_answers, path="/"),
        "environment": {**os.environ, "PORT": str(port), **changes.pop("variables", {})},
        "start_timeout_seconds": 120.0,
    }
    return ProcessDefinition(name=name, **{**fields, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> StackFolder:
    return StackFolder.create(tmp_path / "stack")


class ForegroundStack:
    """`run_until_stopped` in another process, with services that only say that they are healthy."""

    def __init__(self, folder: Path, services: Path) -> None:
        self.folder = folder
        for name in ("exporter", "tokenizer", "trainer", "registry"):
            package = services / f"gpt2_{name}"
            package.mkdir(parents=True, exist_ok=True)
            (package / "__init__.py").touch()
            (package / "__main__.py").write_text(textwrap.dedent(SERVICE))
        self._process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(FOREGROUND), str(folder), str(services)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def addresses(self) -> dict[str, str]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._process.stderr.read() if self._process.stderr else ""
        return dict(json.loads(line))

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> tuple[int, str]:
        _, errors = self._process.communicate(timeout=60)
        return self._process.returncode, errors

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def start_foreground(tmp_path: Path) -> Iterator[Callable[[], ForegroundStack]]:
    started: list[ForegroundStack] = []

    def start() -> ForegroundStack:
        started.append(ForegroundStack(tmp_path / "stack", tmp_path / "services"))
        return started[-1]

    yield start
    for stack in started:
        stack.close()
