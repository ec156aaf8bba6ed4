"""What happens to pods and volumes in mid-training: each time the run ends with the weights of an uninterrupted one.

Where nothing can go on before somebody acts, the job's error says what to do, and that is done.
"""

import contextlib

import pytest

from gpt2_orchestration.client.service_client import ServiceError
from tests.containers.runs import wait_for_job

from .node import NAME
from .training import CONFIG, SAVE_EVERY, Training, run_uninterrupted, use_up_memory

pytestmark = [pytest.mark.process, pytest.mark.parametrize("services", ["cpu"], indirect=True)]
SERVICES = ("exporter", "tokenizer", "trainer", "registry")
STAGES = {"exporter": "ExportCorpus", "tokenizer": "TrainTokenizer", "registry": "ExportModel"}
"""Stages in which services are rolled out; the registry's begins when that has ended. The trainer trains meanwhile."""
PODS_OF_SERVICES = f"app.kubernetes.io/name in ({', '.join(SERVICES)})"
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def reference(services):
    return run_uninterrupted(services, "uninterrupted")


@pytest.fixture
def training(request, services, reference, tell):
    """A training that is past its first checkpoint when the test has waited for it."""
    services.wait_until_ready()
    run_id = request.node.originalname.removeprefix("test_").replace("_", "-")
    return Training(services, "-".join([run_id, *map(str, request.node.callspec.params.values())]), reference, tell)


def test_pod_deleted_by_force(services, training):
    training.start()
    training.wait_for_step(SAVE_EVERY)
    [before] = services.pods("trainer")
    services.kubectl("delete", "pod", before["metadata"]["name"], "--grace-period=0", "--force")
    first, *others = training.require_same_end()
    assert first.host == before["metadata"]["name"]
    assert first.host not in {attempt.host for attempt in others}


def test_container_killed(services, node, training):
    training.start()
    training.wait_for_step(SAVE_EVERY)
    [before] = services.pods("trainer")
    node.kill_container(before, "trainer")
    training.require_same_end()
    [after] = services.pods("trainer")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert [item["restartCount"] for item in after["status"]["containerStatuses"]] == [1]


def test_node_drained(services, training):
    training.start()
    training.wait_for_step(SAVE_EVERY)
    drain = ["drain", NAME, "--ignore-daemonsets", "--delete-emptydir-data", f"--pod-selector={PODS_OF_SERVICES}"]
    before = uids(services)
    with pytest.raises(AssertionError, match="would violate the pod's disruption budget"):
        services.kubectl(*drain, "--timeout=3s")
    assert uids(services) == before
    # As the README of the manifests says.
    services.kubectl("scale", "deployment", *SERVICES, "--replicas=0")
    services.wait(lambda: not services.objects("pods", selector=PODS_OF_SERVICES))
    services.kubectl(*drain, "--timeout=60s")
    services.kubectl("uncordon", NAME)
    services.kubectl("scale", "deployment", *SERVICES, "--replicas=1")
    services.wait_until_ready()
    training.require_same_end()


def test_services_rolled_out_each_at_its_stage(services, training):
    before = uids(services)
    services.start_run(training.run_id, **CONFIG)
    for service in SERVICES:
        if service in STAGES:
            wait_for_job(training.run_id, STAGES[service], client=services.client)
        else:
            training.wait_for_step(SAVE_EVERY)
        services.kubectl("rollout", "restart", f"deployment/{service}")
    training.require_same_end()
    services.wait_until_ready()
    assert not uids(services) & before


def test_services_rolled_out_at_once(services, training):
    before = uids(services)
    training.start()
    training.wait_for_step(SAVE_EVERY)
    services.kubectl("rollout", "restart", "deployment", *SERVICES)
    training.require_same_end()
    services.wait_until_ready()
    assert not uids(services) & before


def test_training_that_the_limit_of_memory_does_not_hold(services, training):
    limit_memory(services, "400Mi")
    try:
        with pytest.raises(ServiceError, match=r"the device has 0.39 GiB.*give the trainer more memory"):
            training.start()
    finally:
        services.kubectl("rollout", "undo", "deployment/trainer")
        services.wait_until_ready()


def test_training_out_of_memory(services, training):
    """Others use up what the container may have, and the kernel kills the largest process, which is the training."""
    limit_memory(services, "1500Mi")
    try:
        training.start()
        training.wait_for_step(SAVE_EVERY)
        [pod] = services.pods("trainer")
        use_up_memory(services, pod["metadata"]["name"], "trainer", "gpt2_common.jobs.worker")
        training.require_out_of_resources("choose smaller sizes or give the service more memory, and retry")
        [pod] = services.pods("trainer")
        assert [item["restartCount"] for item in pod["status"]["containerStatuses"]] == [0]
    finally:
        services.kubectl("rollout", "undo", "deployment/trainer")
        services.wait_until_ready()
    training.resume()
    training.require_same_end()


def test_pod_evicted_by_the_kubelet(services, training):
    """The kubelet's own evictions keep to no disruption budget, and leave a second to save."""
    limit = "--limits=ephemeral-storage=64Mi"
    services.kubectl("set", "resources", "deployment/trainer", "--containers=trainer", limit)
    try:
        services.wait_until_ready()
        training.start()
        training.wait_for_step(SAVE_EVERY)
        [before] = services.pods("trainer")
        write = f"open('/tmp/filler', 'wb').write(bytes({100 * MEBIBYTE}))"
        services.kubectl("exec", before["metadata"]["name"], "--container=trainer", "--", "python", "-c", write)

        def is_evicted():
            events = [item for item in services.objects("events") if item["reason"] == "Evicted"]
            return before["metadata"]["uid"] in {item["involvedObject"].get("uid") for item in events}

        services.wait(is_evicted)
        first, *others = training.require_same_end()
        assert first.host == before["metadata"]["name"]
        assert first.host not in {attempt.host for attempt in others}
        services.kubectl("delete", "pod", before["metadata"]["name"])
    finally:
        services.kubectl("rollout", "undo", "deployment/trainer")
    services.wait_until_ready()


def test_volume_full(services, training):
    training.start()
    training.wait_for_step(SAVE_EVERY)
    filler = services.volumes.folder("artifacts") / "filler"
    fill(filler)
    try:
        training.require_out_of_resources("no space left on the disk", "free some and retry the job")
        # It is no reason to take the services away: they answer for what makes room.
        services.wait_until_ready()
    finally:
        filler.unlink()
    training.resume()
    training.require_same_end()


def limit_memory(services, size):
    sizes = [f"--requests=memory={size}", f"--limits=memory={size}"]
    services.kubectl("set", "resources", "deployment/trainer", "--containers=trainer", *sizes)
    services.wait_until_ready()


def uids(services):
    return {pod["metadata"]["uid"] for pod in services.objects("pods", selector=PODS_OF_SERVICES)}


def fill(path):
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(MEBIBYTE)):
            pass
