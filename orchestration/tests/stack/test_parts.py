"""The stack's small parts: ports, restarts, addresses that are taken."""

import dataclasses
import os
import socket
import subprocess
import sys

import psutil
import pytest

from gpt2_orchestration.stack.errors import NotRunning
from gpt2_orchestration.stack.kafka_broker import BrokerError, MockBroker
from gpt2_orchestration.stack.ports import HOST, choose_ports, claimed_ports
from gpt2_orchestration.stack.process_identity import identify, is_alive
from gpt2_orchestration.stack.restarts import RestartPolicy
from gpt2_orchestration.stack.stopping import stop_stack


@pytest.mark.process
def test_free_port_is_taken_as_preferred():
    free = choose_ports({"one": 0})["one"]
    assert choose_ports({"one": free}) == {"one": free}


@pytest.mark.parametrize("address", [HOST, "0.0.0.0"])
@pytest.mark.process
def test_taken_port_is_replaced(address):
    with socket.socket() as taken:
        taken.bind((address, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert choose_ports({"one": port})["one"] not in (0, port)


@pytest.mark.process
def test_no_two_ports_are_alike():
    free = choose_ports({"one": 0})["one"]
    assert len(set(choose_ports({"one": free, "two": free, "three": 0}).values())) == 3


@pytest.mark.process
def test_two_stacks_that_start_at_once_choose_other_ports():
    free = choose_ports({"one": 0})["one"]
    choosing = f"from gpt2_orchestration.stack.ports import choose_ports; print(choose_ports({{'one': {free}}})['one'])"

    def chosen_by_another() -> int:
        return int(subprocess.run([sys.executable, "-c", choosing], check=True, capture_output=True).stdout)

    with claimed_ports({"one": free}) as ours:
        assert ours == {"one": free}
        assert chosen_by_another() != free
    assert chosen_by_another() == free


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a bound port cannot be listened at")
@pytest.mark.process
def test_claimed_port_goes_to_its_server_and_to_no_connection():
    with claimed_ports({"one": 0}) as ports, socket.socket() as connection, socket.socket() as server:
        with pytest.raises(OSError, match="Address already in use"):
            connection.bind((HOST, ports["one"]))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((HOST, ports["one"]))
        server.listen()
        connection.connect((HOST, ports["one"]))


def test_restarts_wait_longer_each_time_and_end():
    policy = RestartPolicy()
    assert [policy.record_crash(1000.0 + second) for second in range(6)] == [1, 2, 4, 8, 16, None]


def test_steady_process_starts_with_a_clean_record():
    policy = RestartPolicy()
    assert policy.record_crash(1000.0) == 1
    assert not policy.is_due(1000.5)
    assert policy.is_due(1001.0)
    assert policy.record_crash(2000.0) == 1
    assert policy.crashes == 2


def test_down_without_a_stack_says_so(tmp_path):
    with pytest.raises(NotRunning, match="no stack runs in"):
        stop_stack(tmp_path)


def test_library_without_mock_cluster_is_an_error():
    with pytest.raises(BrokerError, match="no mock cluster"):
        MockBroker(object())  # type: ignore[arg-type]


@pytest.mark.process
def test_a_process_is_known_by_the_start_time_that_psutil_gives_until_it_ends():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    found = identify(child.pid)
    assert found is not None
    assert found.started == pytest.approx(psutil.Process(child.pid).create_time(), abs=0.02)
    assert is_alive(found)
    assert not is_alive(dataclasses.replace(found, ticks=found.ticks + 1))
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(found), "it has ended, and waits to be collected"
    child.wait()
    assert identify(child.pid) is None
