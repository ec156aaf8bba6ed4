"""Stopping a stack from another process: slow, deaf and orphaned processes, and pids that strangers have now."""

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from gpt2_orchestration.cli import app
from gpt2_orchestration.stack.errors import NotRunning
from gpt2_orchestration.stack.process_identity import ProcessIdentity, identify
from gpt2_orchestration.stack.process_table import signal_process, wait_gone
from gpt2_orchestration.stack.record import read_previous_record, read_record
from gpt2_orchestration.stack.stopping import stop_stack

pytestmark = pytest.mark.process

# A server that handles SIGTERM as its argument says, with a child in a new session that ignores it, as a job's can be.
ODD = """
    import http.server, os, signal, subprocess, sys, time
    HANDLER = {"deaf": signal.SIG_IGN, "slow": lambda *_: (time.sleep(1.5), os._exit(0))}
    if os.environ["BEHAVIOUR"] == "parent":
        code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    signal.signal(signal.SIGTERM, HANDLER.get(os.environ["BEHAVIOUR"], lambda *_: os._exit(0)))
    http.server.test(http.server.SimpleHTTPRequestHandler, port=int(os.environ["PORT"]), bind="127.0.0.1")
"""

SUPERVISING = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from conftest import SERVER, script_definition
    from gpt2_orchestration.stack.exclusive import exclusive
    from gpt2_orchestration.stack.running import sigterm_interrupts, supervised
    from gpt2_orchestration.stack.settings import StackFolder
    folder = StackFolder.create(Path(sys.argv[1]))
    variables = {"BEHAVIOUR": sys.argv[4]}
    odd = script_definition("odd", sys.argv[3], variables=variables, stop_grace_seconds=float(sys.argv[5]))
    try:
        with exclusive(folder), sigterm_interrupts():
            with supervised([odd, script_definition("plain", SERVER)], folder) as supervisor:
                supervisor.wait_ready()
                print("ready", flush=True)
                supervisor.wait()
    except KeyboardInterrupt:
        pass
"""


@pytest.fixture
def supervise(folder):
    """Starts a supervisor in another process, with a process `odd` of a certain behaviour and one that is `plain`."""
    started = []

    def start(behaviour: str, grace_seconds: float = 60.0) -> subprocess.Popen:
        here = str(Path(__file__).parent)
        arguments = [str(folder.root), here, textwrap.dedent(ODD), behaviour, str(grace_seconds)]
        command = [sys.executable, "-c", textwrap.dedent(SUPERVISING), *arguments]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        assert started[-1].stdout.readline() == b"ready\n"
        return started[-1]

    yield start
    for process in started:
        family = [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
        process.kill()
        process.wait()
        process.stdout.close()
        for member in family:
            member.kill()


def family_of(process):
    return [identify(child.pid) for child in psutil.Process(process.pid).children(recursive=True)]


def test_down_waits_for_a_slow_process_and_says_for_what(folder, supervise):
    supervisor = supervise("slow")
    family = family_of(supervisor)
    waits = []
    outcome = stop_stack(folder.root, on_wait=waits.append)
    assert outcome.killed == ()
    assert wait_gone(family, 0) == []
    assert any(name.startswith("odd (pid ") for waiting in waits for name in waiting.processes)


def test_down_kills_what_is_left_after_its_grace_and_says_so(folder, supervise):
    supervisor = supervise("deaf")
    family = family_of(supervisor)
    outcome = stop_stack(folder.root, grace_seconds=0.5)
    assert "odd" in outcome.killed
    supervisor.wait()
    assert wait_gone(family, 0) == []


def test_down_names_what_the_supervisor_had_to_kill(folder, supervise):
    supervise("deaf", grace_seconds=0.5)
    result = CliRunner().invoke(app, ["stack", "down", "--folder", str(folder.root)])
    assert result.exit_code == 0
    assert "killed, as they did not stop in time: odd" in result.output


def test_down_ends_a_frozen_supervisor_with_all_that_it_keeps(folder, supervise):
    supervisor = supervise("plain")
    family = family_of(supervisor)
    supervisor.send_signal(signal.SIGSTOP)
    outcome = stop_stack(folder.root, grace_seconds=0.5)
    assert "supervisor" in outcome.killed
    supervisor.wait()
    assert wait_gone(family, 0) == []


def test_down_ends_children_in_their_own_sessions(folder, supervise):
    supervisor = supervise("parent")
    family = family_of(supervisor)
    assert len(family) == 4  # two servers, the child of one, and the guard
    stop_stack(folder.root, grace_seconds=2)
    assert wait_gone(family, 0) == []


def test_down_ends_what_a_killed_supervisor_and_a_killed_guard_have_left(folder, supervise):
    supervisor = supervise("deaf")
    family = family_of(supervisor)
    guard = next(
        child for child in psutil.Process(supervisor.pid).children() if "orphan_reaper.py" in " ".join(child.cmdline())
    )
    supervisor.send_signal(signal.SIGSTOP)  # or it would replace the guard
    guard.kill()
    supervisor.kill()
    supervisor.wait()
    outcome = stop_stack(folder.root, grace_seconds=0.5)
    assert not outcome.had_supervisor
    assert "odd" in outcome.killed
    assert wait_gone(family, 0) == []
    with pytest.raises(NotRunning):
        stop_stack(folder.root)


def test_down_leaves_strangers_alone_that_have_the_pids_of_a_killed_stack(folder, supervise):
    supervisor = supervise("plain")
    family = family_of(supervisor)
    supervisor.kill()
    supervisor.wait()
    assert wait_gone(family, 10) == []
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        content = json.loads(folder.record.read_text())
        for identity in (content["supervisor"], *(item["identity"] for item in content["processes"])):
            identity["pid"] = stranger.pid
        folder.record.write_text(json.dumps(content))
        assert read_record(folder) is not None
        with pytest.raises(NotRunning):
            stop_stack(folder.root, grace_seconds=0)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_signal_never_reaches_a_process_with_another_start_time():
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        real = identify(stranger.pid)
        assert real is not None
        signal_process(ProcessIdentity(real.pid, real.started, real.ticks + 1), signal.SIGKILL)
        assert stranger.poll() is None
        signal_process(real, signal.SIGKILL)
        assert stranger.wait(120) == -signal.SIGKILL
    finally:
        stranger.kill()
        stranger.wait()


def test_a_signal_lets_each_process_stop_in_its_own_time(folder, supervise):
    """In Python 3.11 an interrupted join takes its thread for ended: the supervisor then left all to its guard."""
    supervisor = supervise("slow")
    supervisor.send_signal(signal.SIGTERM)
    assert supervisor.wait(60) == 0
    ended = read_previous_record(folder)
    assert ended is not None
    assert {process.name: process.state for process in ended.processes} == {"odd": "stopped", "plain": "stopped"}
