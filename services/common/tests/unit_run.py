"""The unit run (`make unit`, `--unit`): tests that need no server, no child process and no network of a model.

A test belongs to it unless it carries one of the marks `process`, `long` and `exhaustive` or asks, also through others,
for one of the `process_fixtures` in pyproject.toml. What breaks the promise fails by name rather than slows all.
"""

import os
import platform
import sys
import threading
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

import pytest

_LEFT_OUT = "pytestmark = pytest.mark.process\n"
_MARKS = ("process", "long", "exhaustive")
_CHILDREN = frozenset(("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.spawn"))
# Matplotlib lists the machine's fonts by it, once a home folder.
_FONTS = "fc-list"
_SOCKETS = frozenset(("socket.bind", "socket.connect"))
_LIBRARIES = frozenset(("airflow", "apache_beam", "jax", "keras", "kfp", "mlflow", "tensorflow", "tfx", "torch"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("process_fixtures", "fixtures that start a server or a process", type="linelist")
    parser.addoption("--unit", action="store_true", help="run the tests without servers, processes and networks alone")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--unit"):
        config.pluginmanager.register(UnitRun(), "unit-run")


class UnitRun:
    """Selects the tests, and watches them by an audit hook."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._watching = False
        # Artifacts name the commit and the platform that made them, which git and uname would be asked for.
        os.environ.setdefault("GPT2_GIT_REVISION", "unit")
        platform.platform()
        sys.addaudithook(self._audit)
        # No unit test sees a machine lose its power, and the disk takes milliseconds for each of thousands of files.
        os.fsync = lambda _: None  # type: ignore[assignment]
        # The one way to a child that raises no audit event.
        BaseProcess.start = lambda process: self._refuse(f"multiprocessing: {process.name}")  # type: ignore[method-assign]

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._watching:
            return
        if event == "import":
            broken = str(arguments[0]) if arguments[0] in _LIBRARIES else None
        elif event in _CHILDREN and arguments[0] != _FONTS:
            broken = f"{event} {arguments[:2]}"
        elif event in _SOCKETS and isinstance(arguments[1], tuple):
            broken = f"{event} {arguments[1]}"
        else:
            return
        if broken:
            self._refuse(broken)

    def _refuse(self, what: str) -> NoReturn:
        self._found.append(what)
        raise pytest.fail.Exception(f"not in a unit test: {what}")

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        if collection_path.suffix == ".py" and _LEFT_OUT in collection_path.read_text():
            return True
        return None

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        fixtures = set(config.getini("process_fixtures"))
        kept, left_out = [], []
        for item in items:
            marked = any(item.get_closest_marker(name) for name in _MARKS)
            (left_out if marked or not fixtures.isdisjoint(item.fixturenames) else kept).append(item)
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept

    def pytest_sessionstart(self) -> None:
        # Coverage traces threads too, whose start then fails at times in Python 3.11 when two begin at once.
        threading.settrace(None)  # type: ignore[arg-type]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Iterator[None]:
        self._watching = True
        try:
            return (yield)
        finally:
            self._watching = False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self) -> Iterator[None]:
        try:
            return (yield)
        finally:
            found, self._found = self._found, []
            if found:
                pytest.fail(f"not in a unit test: {', '.join(found)}")
