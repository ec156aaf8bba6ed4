"""Each overlay on a node: all pods ready under Pod Security `restricted`, and a planned run to a labelled version."""

import time

import pytest

from .training import started_pods

pytestmark = pytest.mark.process
OVERLAYS = ("cpu", "trainjob", "s3", "trainjob-s3", "gpu", "multi-gpu")


@pytest.mark.parametrize("services", OVERLAYS, indirect=True)
def test_a_planned_run_registers_a_labelled_version(services, request, tell):
    overlay = request.node.callspec.params["services"]
    tell(f"{overlay}: all pods ready after {services.ready_seconds:.0f} s")
    began = time.monotonic()
    # Nodes of one training share a volume, which the overlay with S3 does not let them.
    num_nodes = 2 if overlay == "trainjob" else 0
    services.start_run("planned", num_nodes=num_nodes)
    jobs = services.finish("planned")
    tell(f"{overlay}: labelled after {time.monotonic() - began:.0f} s")
    for kind, job in jobs.items():
        tell(f"  {kind}: {', '.join(output.uri for output in job.outputs)}")
    tell(services.kubectl("get", "pods", "--all-namespaces"))
    warnings = [warning for job in jobs.values() for warning in job.warnings]
    assert not [warning for warning in warnings if "log" in warning or "num_nodes" in warning], warnings
    if "trainjob" in overlay:
        pods = started_pods(services, jobs["TrainModel"].job_id)
        assert sorted(pods.values()) == list(range(num_nodes or 1))
    uris = [output.uri for job in jobs.values() for output in job.outputs if not output.uri.startswith("models:")]
    scheme = "s3://gpt2/artifacts/" if "s3" in overlay else "file:///data/artifacts/"
    assert uris
    assert [uri for uri in uris if not uri.startswith(scheme)] == []
