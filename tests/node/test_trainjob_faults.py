"""What happens to the pod of a TrainJob: each time the run ends with the weights of an uninterrupted one.

The trainer follows the TrainJob with the rights of its Role; kubelet, JobSet and Kubeflow Trainer are real.
"""

import pytest

from gpt2.jobs.v1.job_pb2 import Job
from gpt2_orchestration.client.service_client import connect
from gpt2_trainer.trainjobs.manifest import trainjob_name

from .node import NAME
from .training import SAVE_EVERY, Training, run_uninterrupted, started_pods, use_up_memory

pytestmark = [pytest.mark.process, pytest.mark.parametrize("services", ["trainjob"], indirect=True)]
JOBSET = "jobset.sigs.k8s.io/jobset-name"


class TrainJob(Training):
    """A training whose attempts are pods of a TrainJob."""

    @property
    def name(self):
        return trainjob_name(self.job_id)

    def pods(self):
        return self._services.objects("pods", selector=f"{JOBSET}={self.name}")


@pytest.fixture(scope="module")
def reference(services):
    return run_uninterrupted(services, "uninterrupted")


@pytest.fixture
def training(request, services, reference, tell):
    run_id = request.node.originalname.removeprefix("test_").replace("_", "-")
    return TrainJob(services, run_id, reference, tell)


def test_trainjob_pod_killed(services, node, training):
    training.start()
    training.wait_for_step(SAVE_EVERY)
    [pod] = training.pods()
    node.kill_container(pod, "node")
    training.require_same_end()
    started = started_pods(services, training.job_id)
    assert len(started) == 2
    assert pod["metadata"]["name"] in started


def test_trainjob_node_drained(services, training):
    training.start()
    seen = training.wait_for_step(SAVE_EVERY).progress.done
    services.kubectl("drain", NAME, "--delete-emptydir-data", f"--pod-selector={JOBSET}", "--timeout=110s")
    training.wait_for_phase("node(s) were unschedulable")
    services.kubectl("uncordon", NAME)
    _, second = training.require_same_end()
    assert second.first_step > seen, "the pod did not save when it was asked to stop"


def test_trainjob_suspended(services, training):
    training.start()
    training.wait_for_step(SAVE_EVERY)
    patch = ["patch", "trainjob", training.name, "--type=merge", "--patch"]
    services.kubectl(*patch, '{"spec": {"suspend": true}}')
    services.wait(lambda: not training.pods())
    training.wait_for_phase("waiting for the cluster")
    services.kubectl(*patch, '{"spec": {"suspend": false}}')
    training.require_same_end()


def test_trainjob_cancelled(services, training):
    training.start()
    training.wait_for_step(SAVE_EVERY)
    with connect("trainer", services.client) as trainer:
        trainer.cancel(training.job_id, "enough")
    assert "enough" in training.wait_for_state(Job.STATE_CANCELLED).error.message
    assert not training.pods(), "the job is CANCELLED, and a pod of it is there"
    assert training.name not in {item["metadata"]["name"] for item in services.objects("trainjobs")}
    training.resume()
    training.require_same_end()


def test_trainer_rolled_out_while_its_trainjob_runs(services, training):
    training.start()
    training.wait_for_step(SAVE_EVERY)
    [pod] = training.pods()
    services.kubectl("rollout", "restart", "deployment/trainer")
    services.wait_until_ready()
    assert [item["metadata"]["uid"] for item in training.pods()] == [pod["metadata"]["uid"]]
    training.require_same_end(is_resumed=False)


def test_trainjob_out_of_memory(services, training):
    services.kubectl("set", "env", "deployment/trainer", "GPT2_TRAINJOB_MEMORY=1500Mi")
    try:
        services.wait_until_ready()
        training.start()
        training.wait_for_step(SAVE_EVERY)
        [pod] = training.pods()
        use_up_memory(services, pod["metadata"]["name"], "node", "gpt2_trainer.trainjobs.pod")
        services.wait(lambda: "OOMKilled" in [reason_of(item) for item in training.pods()])
        training.require_same_end()
    finally:
        services.kubectl("rollout", "undo", "deployment/trainer")
        services.wait_until_ready()


def test_trainjob_whose_memory_holds_no_training(services, training):
    services.kubectl("set", "env", "deployment/trainer", "GPT2_TRAINJOB_MEMORY=400Mi")
    try:
        services.wait_until_ready()
        training.start()
        error = training.wait_for_state(Job.STATE_FAILED).error.message
        assert "the device has 0.39 GiB; no setting fits" in error
    finally:
        services.kubectl("rollout", "undo", "deployment/trainer")
        services.wait_until_ready()
    training.resume()
    training.require_same_end(is_resumed=False)


def reason_of(pod):
    """Why a pod's container has ended; empty while it has not."""
    [status] = pod["status"].get("containerStatuses", [{}])
    return status.get("state", {}).get("terminated", {}).get("reason", "")
