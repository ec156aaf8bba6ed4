"""From a clone to a labelled model, by what the how-to says and nothing else."""

import pytest

from tests.end_to_end.documentation import blocks

from .runs import finish

_HOW_TO = "docs/how-to/docker-compose.md"


@pytest.fixture(scope="module")
def how_to(stack, grpcurl):
    """Runs commands of the how-to where somebody runs them who follows it."""
    return lambda commands: stack.run(f"export PATH={grpcurl}:$PATH\n{commands}")


def test_all_is_healthy(stack):
    containers = stack.containers()
    unhealthy = {name: item.health for name, item in stack.long_running().items() if item.health != "healthy"}
    assert not unhealthy, stack.state()
    assert {name: item.exit_code for name, item in containers.items() if not item.running and item.exit_code} == {}
    assert {name: item.restarts for name, item in containers.items() if item.restarts} == {}


def test_the_call_of_the_how_to_registers_a_labelled_version(how_to):
    for commands in blocks(_HOW_TO, "plan"):
        how_to(commands)
    finish("first")
