"""Each overlay on a node: all pods ready under Pod Security `restricted`, and a planned run to a labelled version."""

import time

import pytest

from .services import Services

pytestmark = pytest.mark.process
OVERLAYS = ("cpu", "trainjob")


@pytest.fixture(params=OVERLAYS)
def services(request, administrator, volumes_folder, tell):
    """The services of an overlay, ready."""
    services = Services(administrator, volumes_folder / request.param, request.param)
    try:
        tell(f"{request.param}: all pods ready after {services.deploy():.0f} s")
        yield services
    finally:
        services.remove()


def test_a_planned_run_registers_a_labelled_version(services, tell):
    began = time.monotonic()
    num_nodes = 2 if services.overlay == "trainjob" else 0
    services.start_run("planned", num_nodes=num_nodes)
    jobs = services.finish("planned")
    tell(f"{services.overlay}: labelled after {time.monotonic() - began:.0f} s")
    for kind, job in jobs.items():
        tell(f"  {kind}: {', '.join(output.uri for output in job.outputs)}")
    tell(services.kubectl("get", "pods", "--all-namespaces"))
    warnings = [warning for job in jobs.values() for warning in job.warnings]
    assert not [warning for warning in warnings if "log" in warning], warnings
