"""Trainings under the real Kubeflow Trainer and JobSet: followed to their results, resumed, suspended, cancelled.

`.ci/run` runs those that are not exhaustive: a training to its end, and what only a real cluster showed to be wrong.
"""

import json

import pytest
import yaml

from gpt2_trainer.trainjobs.manifest import trainjob_name
from gpt2_trainer.trainjobs.pod import LOG_PREFIX

from .running_cluster import TRAINER_IMAGE
from .silent_proxy import SilentProxy
from .trainings import NAMESPACE, State, Trainings, address_of, index_of, steps_of, weights_of
from .waiting import wait_for

pytestmark = pytest.mark.process
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:trainer"
EXIT_SUSPENDED = 75


@pytest.fixture(scope="module")
def namespace(cluster):
    """The namespace, with everything that the manifests bring for trainings."""
    cluster.create_namespace(NAMESPACE)
    cluster.create_volumes(NAMESPACE)
    cluster.apply_overlay("trainjob", NAMESPACE)
    return NAMESPACE


@pytest.fixture(scope="module")
def shared(tmp_path_factory, cluster, namespace):
    """Trainings of one trainer with its usual settings."""
    trainings = Trainings(tmp_path_factory.mktemp("shared"), cluster)
    yield trainings
    trainings.close()


@pytest.fixture(scope="module")
def shared_trainer(shared):
    return shared.start()


@pytest.fixture
def trainer(shared, shared_trainer):
    """That trainer. What the test leaves running is cancelled."""
    yield shared_trainer
    shared.cancel_all(shared_trainer)


@pytest.fixture
def trainings(tmp_path, cluster, namespace):
    """Trainings of a trainer that the test starts."""
    trainings = Trainings(tmp_path, cluster)
    yield trainings
    trainings.close()
    cluster.control_plane.kubectl("delete", "trainjobs", "--all", "--namespace", namespace)


def test_a_training_is_a_pod_that_the_job_follows_to_its_result(shared, trainer, cluster):
    image = cluster.node.images.pop(TRAINER_IMAGE)
    shared.train(trainer, "result", steps=12)
    shared.wait_for_phase(trainer, "result", "ImagePullBackOff")
    name = trainjob_name("result")
    kinds = {item["kind"]: item for item in cluster.objects(NAMESPACE, "trainjobs", "jobsets", "jobs")}
    assert kinds["JobSet"]["metadata"]["ownerReferences"][0]["name"] == name
    assert kinds["Job"]["metadata"]["ownerReferences"][0]["kind"] == "JobSet"
    [pod] = shared.pods("result")
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"memory": "4Gi", "nvidia.com/gpu": "1"}
    cluster.node.images[TRAINER_IMAGE] = image
    ended = shared.wait_for_end(trainer, "result")
    assert ended.state == State.STATE_SUCCEEDED, ended.error
    assert [output.name for output in ended.outputs] == ["checkpoint", "logs", "samples"]
    assert len(shared.seen("result")) == 1
    wait_for(lambda: not cluster.objects(NAMESPACE, "trainjobs", "jobsets", "jobs"), "the deletion of the TrainJob")
    wait_for(lambda: not shared.pods("result"), "the deletion of its pod")


@pytest.mark.exhaustive
def test_a_killed_pod_is_replaced_by_one_that_resumes(shared, trainer, cluster):
    shared.train(trainer, "killed")
    shared.wait_for_step(trainer, "killed", 10)
    [pod] = shared.seen("killed")
    printed = cluster.control_plane.kubectl("logs", pod.name, "--namespace", NAMESPACE, "--tail=5").splitlines()
    assert len(printed) == 5
    assert any(line.startswith(LOG_PREFIX) for line in printed)
    pod.kill()
    wait_for(lambda: len(shared.seen("killed")) == 2, "another pod")
    first_step = wait_for(lambda: steps_of(shared.seen("killed")[1]), "its progress")[0]
    assert first_step >= 5, "the new pod began from nothing"
    shared.wait_for_step(trainer, "killed", first_step)


@pytest.mark.exhaustive
def test_a_training_on_two_nodes_ends_with_the_same_weights_when_one_of_them_is_killed(trainings):
    trainer = trainings.start(GPT2_NODE_HEARTBEAT_SECONDS="10")
    trainings.train(trainer, "whole", steps=300, num_nodes=2)
    whole = trainings.wait_for_end(trainer, "whole")
    assert whole.state == State.STATE_SUCCEEDED, whole.error
    assert {index_of(pod) for pod in trainings.seen("whole")} == {0, 1}
    assert len(trainings.seen("whole")) == 2
    for lost in (0, 1):
        job_id = f"node-{lost}-killed"
        trainings.train(trainer, job_id, steps=300, num_nodes=2)
        trainings.wait_for_step(trainer, job_id, 10)
        [pod] = [pod for pod in trainings.seen(job_id) if index_of(pod) == lost]
        pod.kill()
        ended = trainings.wait_for_end(trainer, job_id)
        assert ended.state == State.STATE_SUCCEEDED, ended.error
        seen = trainings.seen(job_id)
        assert sum(index_of(pod) == lost for pod in seen) >= 2, "the killed pod has not been replaced"
        first_steps = [steps_of(pod)[0] for pod in seen if steps_of(pod)]
        assert max(first_steps) >= 5, "the new pods began from nothing"
        assert weights_of(ended) == weights_of(whole)


@pytest.mark.exhaustive
def test_a_service_that_died_finds_its_trainjob(trainings):
    first = trainings.start()
    trainings.train(first, "found")
    trainings.wait_for_step(first, "found", 5)
    first.process.kill()
    first.process.wait()
    second = trainings.start()
    trainings.wait_for_step(second, "found", 10)
    second.process.terminate()
    assert second.process.wait(60) == 0
    third = trainings.start()
    trainings.wait_for_step(third, "found", 15)
    [pod] = trainings.seen("found")
    assert not pod.ended, "the training ended with its service"


@pytest.mark.exhaustive
def test_a_suspended_trainjob_waits_and_resumes(shared, trainer, cluster):
    shared.train(trainer, "suspended")
    shared.wait_for_step(trainer, "suspended", 10)
    patch = ["patch", "trainjob", trainjob_name("suspended"), "--namespace", NAMESPACE, "--type=merge", "--patch"]
    cluster.control_plane.kubectl(*patch, '{"spec": {"suspend": true}}')
    wait_for(lambda: not shared.pods("suspended"), "the deletion of the pod")
    [pod] = shared.seen("suspended")
    assert pod.process().poll() == EXIT_SUSPENDED
    shared.wait_for_phase(trainer, "suspended", "waiting for the cluster")
    cluster.control_plane.kubectl(*patch, '{"spec": {"suspend": false}}')
    wait_for(lambda: len(shared.seen("suspended")) == 2, "another pod")
    first_step = wait_for(lambda: steps_of(shared.seen("suspended")[1]), "its progress")[0]
    assert first_step >= 5, "the new pod began from nothing"


def test_a_cancelled_job_ends_when_its_pod_is_gone_and_no_second_pod_starts(shared, trainer, cluster):
    for number in range(3):
        job_id = f"cancelled-{number}"
        shared.train(trainer, job_id)
        shared.wait_for_step(trainer, job_id, 5)
        shared.cancel(trainer, job_id)
        ended = shared.wait_for_end(trainer, job_id)
        assert ended.state == State.STATE_CANCELLED
        assert not shared.pods(job_id), "the job is CANCELLED, and a pod of it is there"
        assert shared.trainjob(job_id) is None
        assert [pod.process().poll() for pod in shared.seen(job_id)] == [EXIT_SUSPENDED]


@pytest.mark.exhaustive
def test_a_job_ends_where_somebody_else_deletes_its_trainjob(shared, trainer, cluster):
    shared.train(trainer, "deleted")
    shared.wait_for_step(trainer, "deleted", 5)
    cluster.control_plane.kubectl("delete", "trainjob", trainjob_name("deleted"), "--namespace", NAMESPACE)
    ended = shared.wait_for_end(trainer, "deleted")
    assert ended.state == State.STATE_FAILED
    assert "was deleted by someone else" in ended.error.message


def test_a_log_whose_connection_falls_silent_keeps_no_job_from_its_end(trainings, cluster):
    proxy = SilentProxy(*address_of(cluster))
    try:
        trainer = trainings.start(GPT2_KUBERNETES_API=f"https://127.0.0.1:{proxy.port}")
        trainings.train(trainer, "silent", steps=600)
        trainings.wait_for_step(trainer, "silent", 5)
        assert proxy.fall_silent(), "there was no connection"
        ended = trainings.wait_for_end(trainer, "silent")
        assert ended.state == State.STATE_SUCCEEDED, ended.error
    finally:
        proxy.close()


def test_a_runtime_that_is_missing_is_named(trainings):
    trainer = trainings.start(GPT2_TRAINJOB_RUNTIME="TrainingRuntime/missing-runtime")
    trainings.train(trainer, "runtime")
    ended = trainings.wait_for_end(trainer, "runtime")
    assert ended.state == State.STATE_FAILED
    assert "missing-runtime" in ended.error.message
    assert "needs the Role" not in ended.error.message


@pytest.mark.exhaustive
def test_rights_that_are_missing_are_named(trainings):
    trainings.write_credentials("default")
    trainer = trainings.start()
    trainings.train(trainer, "rights")
    ended = trainings.wait_for_end(trainer, "rights")
    assert ended.state == State.STATE_FAILED
    assert "needs the Role" in ended.error.message


@pytest.mark.exhaustive
def test_a_training_that_no_node_can_hold_says_so(trainings):
    trainer = trainings.start(GPT2_TRAINJOB_GPUS="1000")
    trainings.train(trainer, "unschedulable")
    assert "Insufficient nvidia.com/gpu" in trainings.wait_for_phase(trainer, "unschedulable", "nvidia.com/gpu")
    trainings.cancel(trainer, "unschedulable")
    assert trainings.wait_for_end(trainer, "unschedulable").state == State.STATE_CANCELLED


@pytest.mark.exhaustive
def test_what_the_training_itself_finds_wrong_is_not_tried_again(trainings):
    trainer = trainings.start()
    (trainings.folder / "dataset" / "train-00001.npy").unlink()
    trainings.train(trainer, "wrong")
    ended = trainings.wait_for_end(trainer, "wrong")
    assert ended.state == State.STATE_FAILED
    assert "is missing: make the artifact again" in ended.error.message
    assert len(trainings.seen("wrong")) == 1


@pytest.mark.exhaustive
def test_a_training_that_is_out_of_memory_each_time_fails_and_a_retry_resumes(trainings, cluster):
    [runtime] = cluster.objects(NAMESPACE, "trainingruntimes")
    runtime["metadata"] = {"name": "one-attempt", "labels": runtime["metadata"]["labels"]}
    runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["backoffLimit"] = 0
    cluster.control_plane.kubectl("apply", "--namespace", NAMESPACE, "--filename=-", content=yaml.safe_dump(runtime))
    trainer = trainings.start(GPT2_TRAINJOB_RUNTIME="TrainingRuntime/one-attempt")
    trainings.train(trainer, "memory")
    trainings.wait_for_step(trainer, "memory", 10)
    [pod] = trainings.seen("memory")
    with pod.log().open("a") as log:
        log.write("CUDA_ERROR_OUT_OF_MEMORY: the last line\n")
    pod.kill("OOMKilled")
    ended = trainings.wait_for_end(trainer, "memory")
    assert ended.state == State.STATE_FAILED
    assert "GPT2_TRAINJOB_MEMORY" in ended.error.message
    assert "the last line" in ended.error.message
    trainings.train(trainer, "memory", retry_failed=True)
    trainings.wait_for_step(trainer, "memory", 10)
    assert steps_of(trainings.seen("memory")[-1])[0] >= 5, "the retry began from nothing"


@pytest.mark.exhaustive
@pytest.mark.parametrize("way", ["drain", "evict"])
def test_an_evicted_pod_is_replaced_by_one_that_resumes(shared, trainer, cluster, way):
    shared.train(trainer, way)
    shared.wait_for_step(trainer, way, 10)
    [pod] = shared.seen(way)
    with cluster.second_node(f"node-for-{way}"):
        if way == "drain":
            options = ["--delete-emptydir-data", "--pod-selector=jobset.sigs.k8s.io/jobset-name"]
            cluster.control_plane.kubectl("drain", cluster.node.name, *options)
        else:
            pod.evict()
        wait_for(lambda: len(shared.seen(way)) == 2, "another pod")
        cluster.control_plane.kubectl("uncordon", cluster.node.name)
        first_step = wait_for(lambda: steps_of(shared.seen(way)[1]), "its progress")[0]
        assert first_step >= 5, "the new pod began from nothing"
        shared.wait_for_step(trainer, way, first_step)


@pytest.mark.exhaustive
def test_a_training_whose_node_is_lost_resumes_on_another(shared, trainer, cluster):
    kubectl = cluster.control_plane.kubectl
    with cluster.second_node("node-to-lose") as lost:
        kubectl("cordon", cluster.node.name)
        shared.train(trainer, "lost")
        shared.wait_for_step(trainer, "lost", 10)
        lost.stop()
        kubectl("uncordon", cluster.node.name)
        # Before its node is deleted, nobody can know that the pod does not run on.
        kubectl("delete", "node", lost.name)
        wait_for(lambda: len(shared.seen("lost")) == 2, "another pod")
        again = next(pod for pod in shared.seen("lost") if pod in cluster.node.seen)
        first_step = wait_for(lambda: steps_of(again), "its progress")[0]
        assert first_step >= 5, "the new pod began from nothing"
        shared.wait_for_step(trainer, "lost", first_step)


@pytest.mark.exhaustive
def test_the_role_allows_what_the_trainer_calls_and_no_more(trainer, cluster):
    """Comes last: the calls of all tests before it are in the audit log."""
    [role] = [item for item in cluster.objects(NAMESPACE, "roles") if item["metadata"]["name"] == "trainer"]
    allowed = {
        (verb, group, resource)
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    called = set()
    for line in cluster.control_plane.audit_log.read_text().splitlines():
        event = json.loads(line)
        if event["user"]["username"] == ACCOUNT:
            place = event["objectRef"]
            resource = "/".join(filter(None, (place["resource"], place.get("subresource"))))
            called.add((event["verb"], place.get("apiGroup", ""), resource))
    assert called == allowed
