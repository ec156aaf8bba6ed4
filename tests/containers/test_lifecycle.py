"""What is kept when the stack is restarted, or taken down and brought up again."""

import pytest

from .runs import digests, finish, jobs_of, start_run, wait_for_job


@pytest.fixture(scope="module")
def kept(stack, documents) -> dict[str, str]:
    """A run that has ended before; the digests of what it made."""
    start_run("kept", steps=20)
    return digests(finish("kept"))


def test_a_run_continues_over_a_restart_of_all_containers(stack, kept):
    start_run("restarted")
    wait_for_job("restarted", "TrainModel")
    stack.compose("restart", seconds=600)
    stack.up()
    finish("restarted")
    assert digests(jobs_of("kept")) == kept


def test_down_and_up_loses_nothing(stack, kept):
    start_run("taken-down")
    wait_for_job("taken-down", "TrainModel")
    stack.compose("down", seconds=600)
    assert stack.containers() == {}
    stack.up()
    finish("taken-down")
    assert digests(jobs_of("kept")) == kept
