"""The supervisor with small processes: starts, crashes, restarts, and ends in every way."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from gpt2_orchestration.stack.control import stack_status
from gpt2_orchestration.stack.errors import AlreadyRunning, NotRunning, StackError
from gpt2_orchestration.stack.exclusive import exclusive
from gpt2_orchestration.stack.process_identity import identify
from gpt2_orchestration.stack.process_table import wait_gone
from gpt2_orchestration.stack.readiness import http_answers
from gpt2_orchestration.stack.record import ProcessRecord, read_record
from gpt2_orchestration.stack.running import supervised

from .conftest import SERVER, script_definition, wait_until

pytestmark = pytest.mark.process


def pid_of(folder, name):
    return next(process.pid for process in stack_status(folder.root) if process.name == name)


def test_processes_start_answer_and_stop(folder):
    definitions = [script_definition("one", SERVER), script_definition("two", SERVER)]
    with exclusive(folder), supervised(definitions, folder) as supervisor:
        addresses = supervisor.wait_ready()
        assert all(http_answers(address, "/") for address in addresses.values())
        for process in stack_status(folder.root):
            assert (process.state, process.restarts) == ("ready", 0)
            assert process.resident_bytes > 1 << 20
            assert process.uptime_seconds >= process.start_seconds > 0
        pids = [process.pid for process in stack_status(folder.root)]
    assert not any(map(psutil.pid_exists, pids))
    assert "goodbye" in folder.log("one").read_text()
    assert not folder.record.exists()


def test_death_at_start_names_the_process_and_quotes_its_log(folder):
    broken = script_definition("broken", "print('no such database'); raise SystemExit(3)")
    good = script_definition("good", SERVER)
    with exclusive(folder), supervised([good, broken], folder) as supervisor:
        with pytest.raises(StackError, match=r"broken ended \(exit status 3\)[^$]*no such database"):
            supervisor.wait_ready()
        wait_until(lambda: not http_answers(good.address, "/"))


def test_no_answer_at_start_is_an_error(folder):
    silent = script_definition("silent", "import time; time.sleep(60)", start_timeout_seconds=0.5)
    with (
        exclusive(folder),
        supervised([silent], folder) as supervisor,
        pytest.raises(StackError, match="silent did not answer in time"),
    ):
        supervisor.wait_ready()


def test_missing_program_is_an_error(folder):
    missing = script_definition("missing", "", command=("/nonexistent/program",))
    with (
        exclusive(folder),
        supervised([missing], folder) as supervisor,
        pytest.raises(StackError, match="missing ended"),
    ):
        supervisor.wait_ready()


def test_crashed_process_is_started_again(folder):
    seen: list[ProcessRecord] = []
    with exclusive(folder), supervised([script_definition("one", SERVER)], folder, seen.append) as supervisor:
        supervisor.wait_ready()
        first = pid_of(folder, "one")
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: stack_status(folder.root)[0].restarts == 1)
        wait_until(lambda: stack_status(folder.root)[0].state == "ready")
        assert pid_of(folder, "one") != first
    assert [record.state for record in seen] == [
        *("starting", "ready", "waiting", "starting", "ready"),
        *("stopping", "stopped"),
    ]


def test_process_that_cannot_be_kept_up_is_left_alone(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("gpt2_orchestration.stack.restarts._FIRST_DELAY_SECONDS", 0.01)
    marker = tmp_path / "was-up"
    script = f"""
        import pathlib
        if pathlib.Path({str(marker)!r}).exists():
            raise SystemExit(1)
        {textwrap.indent(textwrap.dedent(SERVER), " " * 8).strip()}
    """
    with exclusive(folder), supervised([script_definition("one", script)], folder) as supervisor:
        supervisor.wait_ready()
        marker.touch()
        os.kill(pid_of(folder, "one"), signal.SIGKILL)
        wait_until(lambda: stack_status(folder.root)[0].state == "failed")
        assert stack_status(folder.root)[0].restarts == 6


def test_what_a_crashed_process_had_started_ends_too(folder):
    script = f"""
        import subprocess, sys
        print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid, flush=True)
        {textwrap.indent(textwrap.dedent(SERVER), " " * 8).strip()}
    """
    with exclusive(folder), supervised([script_definition("one", script)], folder) as supervisor:
        supervisor.wait_ready()
        grandchild = identify(int(folder.log("one").read_text().split()[0]))
        assert grandchild is not None
        os.kill(pid_of(folder, "one"), signal.SIGKILL)
        assert wait_gone([grandchild], 10) == []


def test_process_with_a_new_address_restarts_those_that_need_it(folder, tmp_path):
    address_file = tmp_path / "address"
    script = f"""
        import http.server, pathlib
        server = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
        pathlib.Path({str(address_file)!r}).write_text("127.0.0.1:%d" % server.server_port)
        server.serve_forever()
    """
    roaming = script_definition("roaming", script, address="", address_file=address_file)
    needing = script_definition("needing", SERVER, needs={"OTHER": "roaming"})
    with exclusive(folder), supervised([needing, roaming], folder) as supervisor:
        first = supervisor.wait_ready()["roaming"]
        os.kill(pid_of(folder, "roaming"), signal.SIGKILL)
        wait_until(lambda: folder.log("needing").read_text().count("hello") == 2)
        second = address_file.read_text()
    log = folder.log("needing").read_text()
    assert first != second
    assert f"hello {first}" in log
    assert f"hello {second}" in log


def test_processes_stop_in_order_and_the_deaf_are_killed(folder):
    stopped: list[tuple[str, str]] = []
    deaf = script_definition(
        "deaf",
        SERVER.replace("signal.signal(signal.SIGTERM,", "signal.signal(signal.SIGTERM, signal.SIG_IGN) or ("),
        stop_order=0,
        stop_grace_seconds=0.5,
    )
    last = script_definition("last", SERVER, stop_order=1)

    def note(record):
        if record.state in ("stopped", "killed"):
            stopped.append((record.name, record.state))

    with exclusive(folder), supervised([last, deaf], folder, note) as supervisor:
        supervisor.wait_ready()
        pid = pid_of(folder, "deaf")
        started = time.monotonic()
    assert stopped == [("deaf", "killed"), ("last", "stopped")]
    assert not psutil.pid_exists(pid)
    assert 0.5 <= time.monotonic() - started < 5


SUPERVISING = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from conftest import SERVER, script_definition
    from gpt2_orchestration.stack.exclusive import exclusive
    from gpt2_orchestration.stack.running import supervised
    from gpt2_orchestration.stack.settings import StackFolder
    folder = StackFolder.create(Path(sys.argv[1]))
    with exclusive(folder), supervised([script_definition(name, SERVER) for name in "abc"], folder) as supervisor:
        supervisor.wait_ready()
        print("ready", flush=True)
        supervisor.wait()
"""


@pytest.fixture
def supervising(folder):
    """A supervisor in another process; it never outlives its test."""
    process = start_supervising(folder)
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def start_supervising(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SUPERVISING), str(folder.root), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def test_nothing_outlives_a_killed_supervisor(folder, supervising):
    family = [identify(child.pid) for child in psutil.Process(supervising.pid).children(recursive=True)]
    assert len(family) == 4  # three servers and the guard
    supervising.kill()
    supervising.wait()
    assert wait_gone([member for member in family if member], 10) == []
    assert folder.record.exists()
    with pytest.raises(NotRunning):
        stack_status(folder.root)
    with exclusive(folder), supervised([script_definition("one", SERVER)], folder) as supervisor:
        supervisor.wait_ready()


def guards_of(supervisor):
    return [child for child in supervisor.children() if is_guard(child)]


def is_guard(process):
    try:
        return any("orphan_reaper.py" in word for word in process.cmdline())
    except psutil.ZombieProcess:
        return False


def test_a_killed_guard_is_replaced(folder, supervising):
    supervisor = psutil.Process(supervising.pid)
    [guard] = guards_of(supervisor)
    guard.kill()
    wait_until(lambda: any(found != guard for found in guards_of(supervisor)))
    family = [identify(child.pid) for child in supervisor.children(recursive=True)]
    supervising.kill()
    supervising.wait()
    assert wait_gone([member for member in family if member], 10) == []


def test_a_folder_has_one_stack(folder, supervising):
    with pytest.raises(AlreadyRunning, match=f"already runs.*process {supervising.pid}"), exclusive(folder):
        raise AssertionError("both had it")


def test_a_stale_record_never_kills_a_stranger(folder, supervising):
    """The record of a crashed stack names pids that another process has now, with another start time."""
    supervising.kill()
    supervising.wait()
    text = folder.record.read_text()
    record = read_record(folder)
    assert record is not None
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        for item in record.processes:
            assert item.identity is not None
            text = text.replace(f'"pid": {item.identity.pid},', f'"pid": {stranger.pid},')
        folder.record.write_text(text)
        with exclusive(folder):
            assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"format": 99}', "\0\0"])
def test_a_damaged_record_is_no_obstacle(folder, content):
    folder.record.write_text(content)
    with pytest.raises(NotRunning):
        stack_status(folder.root)
    with exclusive(folder), supervised([script_definition("one", SERVER)], folder) as supervisor:
        supervisor.wait_ready()
