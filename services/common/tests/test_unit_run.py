"""The unit run itself: what it leaves out, and that a test which starts something fails by name."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

CONFIGURATION = """
[pytest]
markers =
    process: needs a process
    long: takes seconds
    exhaustive: one of many
process_fixtures = broker
"""
TESTS = """
    import multiprocessing, socket, subprocess, sys
    import pytest

    @pytest.fixture
    def broker():
        subprocess.run(["true"])

    @pytest.fixture
    def service(broker): ...

    def test_of_a_service(service): ...

    @pytest.mark.process
    def test_marked(): ...

    @pytest.mark.long
    def test_of_seconds(): ...

    @pytest.mark.parametrize("number", [1, pytest.param(2, marks=pytest.mark.exhaustive)])
    def test_of_many(number): ...

    @pytest.fixture(params=["memory", pytest.param("server", marks=pytest.mark.process)])
    def store(request):
        return request.param

    def test_of_stores(store):
        assert store == "memory"

    def test_child():
        subprocess.run(["true"])

    def test_hidden_child():
        try:
            multiprocessing.get_context("spawn").Process(target=print).start()
        except BaseException:
            pass

    def test_server():
        socket.create_server(("127.0.0.1", 0))

    def test_library():
        import jax

    def test_local_pair():
        for end in socket.socketpair():
            end.close()
"""


def test_what_needs_a_process_is_left_out_and_what_starts_one_fails(tmp_path):
    (tmp_path / "pytest.ini").write_text(CONFIGURATION)
    (tmp_path / "test_some.py").write_text(textwrap.dedent(TESTS))
    (tmp_path / "test_none.py").write_text("import pytest\n\npytestmark = pytest.mark.process\nraise ValueError\n")
    command = [sys.executable, "-m", "pytest", "-p", "unit_run", "--unit", "-rA", "--color=no", str(tmp_path)]
    environment = {"PYTHONPATH": str(Path(__file__).parent)}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path).stdout
    names = {kind: set() for kind in ("PASSED", "FAILED", "ERROR")}
    for line in output.splitlines():
        kind, _, rest = line.partition(" ")
        if kind in names and "::" in rest:
            names[kind].add(rest.partition("::")[2].partition(" ")[0])
    assert names["FAILED"] == {"test_child", "test_server", "test_library"}
    assert names["ERROR"] == {"test_child", "test_hidden_child", "test_server", "test_library"}
    assert names["PASSED"] == {"test_of_stores[memory]", "test_of_many[1]", "test_hidden_child", "test_local_pair"}
    assert "not in a unit test: subprocess.Popen ('true'" in output
