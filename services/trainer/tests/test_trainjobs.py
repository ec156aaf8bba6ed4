"""Trainings as Kubeflow TrainJobs, of a real trainer on a stand-in of the cluster: followed, found again, cancelled."""

import json
import os
import signal
import subprocess
import sys
import time

import grpc
import pytest
from google.rpc import code_pb2, status_pb2
from trainer_support.cluster import Cluster
from trainer_support.data import make_dataset
from trainer_support.service import Trainer

from gpt2.jobs.v1 import job_pb2, jobs_service_pb2
from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.jobs.messages import decode_message
from gpt2_common.jobs.outcome import Failed
from gpt2_common.settings import SettingsError, load_settings
from gpt2_trainer.settings import TrainerSettings
from gpt2_trainer.trainjobs.kubernetes import ClusterAddress
from gpt2_trainer.trainjobs.manifest import trainjob_name
from gpt2_trainer.trainjobs.pod import LOG_PREFIX
from gpt2_trainer.trainjobs.pod_status import failure_of, is_failed, termination_message, why_waiting
from gpt2_trainer.validation import trainjob_problems

SECRET = "canary-secret-of-a-training"
State = job_pb2.Job
ENDLESS = 1_000_000
"""Steps of a training that no test waits for."""


@pytest.fixture
def folder(tmp_path):
    make_dataset(tmp_path / "dataset")
    return tmp_path


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Programs that XLA has compiled, for all pods."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    return {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


@pytest.fixture
def cluster(folder, request, compiled):
    try:
        schema = request.getfixturevalue("kubeflow_schemas")["TrainJob"]
    except pytest.skip.Exception:
        schema = None
    cluster = Cluster(folder, schema, {("gpt2-canary", "value"): SECRET}, compiled)
    yield cluster
    cluster.close()


@pytest.fixture
def start(cluster, folder):
    """Starts the trainer, again and again on the same jobs."""
    trainers = []

    def start():
        trainers.append(Trainer(folder, GPT2_KERAS_BACKEND="auto", **cluster.variables))
        return trainers[-1]

    yield start
    for trainer in trainers:
        trainer.channel.close()
        trainer.process.terminate()
        trainer.process.wait(60)


def train(trainer, folder, steps=4, job_id="run/train", num_nodes=0, **options):
    request = pb.TrainModelRequest(
        job=job_pb2.JobOptions(job_id=job_id, **options),
        dataset_uri=(folder / "dataset").as_uri(),
        model=pb.ModelConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=16),
        config=pb.TrainConfig(
            steps=steps, batch_size=4, sample_length=1, save_every=5, validate_every=1000000, num_nodes=num_nodes
        ),
    )
    return trainer.trainer.TrainModel(request).job


def wait_for(condition, what):
    deadline = time.monotonic() + 300
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


def job_of(trainer, job_id="run/train"):
    return trainer.jobs.GetJob(jobs_service_pb2.GetJobRequest(job_id=job_id)).job


def is_past(trainer, step):
    job = job_of(trainer)
    assert job.state in (State.STATE_QUEUED, State.STATE_RUNNING), job
    return job.progress.phase == "training" and job.progress.done > step


def second_pod(cluster):
    pods = cluster.find(trainjob_name("run/train")).pods
    return pods[1] if len(pods) == 2 else None


def steps_of(pod):
    """The steps that a pod has reported, each in turn."""
    lines = pod.log.read_text().splitlines() if pod.log.exists() else []
    messages = [
        json.loads(line.removeprefix(LOG_PREFIX))
        for line in lines
        if line.startswith(LOG_PREFIX) and line.endswith("}")
    ]
    found = [decode_message(message) for message in messages]
    return [item.done for item in found if isinstance(item, job_pb2.Progress) and item.unit == "steps"]


def test_a_training_runs_as_a_trainjob_with_secrets_by_reference(start, cluster, folder):
    cluster.pulls_images, cluster.outages = False, 1
    trainer = start()
    job = train(trainer, folder)
    wait_for(lambda: "ImagePullBackOff" in job_of(trainer).progress.phase, "the reason why the pod waits")
    cluster.pulls_images, cluster.outages, cluster.log_outages = True, 2, 1
    ended = trainer.finish(job)
    assert ended.state == State.STATE_SUCCEEDED, ended.error
    assert [output.name for output in ended.outputs] == ["checkpoint", "logs", "samples"]
    assert ended.progress.phase == "publishing"
    [created] = cluster.created
    assert SECRET not in str(created)
    assert created["spec"]["trainer"]["resourcesPerNode"]["limits"] == {"memory": "16Gi", "nvidia.com/gpu": "1"}
    variables = {item["name"]: item.get("value") for item in created["spec"]["trainer"]["env"]}
    tunables = variables["GLIBC_TUNABLES"]
    assert variables["GPT2_KERAS_BACKEND"] == "jax"
    assert "mmap_max=0" in tunables
    # What is left of a job that has ended is deleted, at the latest when the service starts again.
    start()
    wait_for(lambda: cluster.find(trainjob_name("run/train")) is None, "the TrainJob's end")
    assert cluster.called == cluster.allowed, "the Role allows more than is called for, or less"


def test_the_object_fits_kubeflows_own_schema(kubeflow_schemas, cluster):
    assert cluster.validator is not None
    refused, answer = cluster.create({"metadata": {"name": "x"}, "spec": {"trainer": {"images": "x"}}})
    assert refused == 422
    assert "images" in answer["message"]


def test_a_training_on_several_nodes_is_a_pod_on_each_and_resumes_when_one_is_lost(start, cluster, folder):
    cluster.backoff_limit = 3
    trainer = start()
    job = train(trainer, folder, steps=200, num_nodes=2)
    wait_for(lambda: is_past(trainer, 5), "progress")
    run = cluster.find(trainjob_name("run/train"))
    assert run.content["spec"]["trainer"]["numNodes"] == 2
    run.pods_of(1)[0].process.kill()
    ended = trainer.finish(job)
    assert ended.state == State.STATE_SUCCEEDED, ended.error
    assert [output.name for output in ended.outputs] == ["checkpoint", "logs", "samples"]
    again = run.pods_of(0)[-1]
    assert run.pods_of(0)[0].process.poll() not in (0, 1)
    assert steps_of(again)[0] >= 5, "the new pods began from nothing"
    assert not steps_of(run.pods_of(1)[-1]), "another node than the first reports"


def test_a_service_that_died_or_stopped_finds_its_trainjob_and_a_lost_pod_is_made_again(start, cluster, folder):
    cluster.backoff_limit = 1
    first = start()
    train(first, folder, steps=ENDLESS)
    wait_for(lambda: is_past(first, 5), "progress")
    first.process.kill()
    first.process.wait()
    [pod] = cluster.find(trainjob_name("run/train")).pods
    second = start()
    wait_for(lambda: is_past(second, 5), "progress after the service died")
    assert pod.process.poll() is None
    second.process.terminate()
    assert second.process.wait(30) == 0
    assert pod.process.poll() is None, "the training ended with its service"
    third = start()
    wait_for(lambda: is_past(third, 5), "progress after the service stopped")
    pod.process.kill()
    again = wait_for(lambda: second_pod(cluster), "another pod")
    first_step = wait_for(lambda: steps_of(again), "its progress")[0]
    assert first_step >= 5, "the new pod began from nothing"
    wait_for(lambda: is_past(third, first_step), "the progress of the new pod")
    assert len(cluster.created) == 1


def test_a_cancelled_job_ends_when_its_pod_is_gone(start, cluster, folder):
    trainer = start()
    job = train(trainer, folder, steps=ENDLESS)
    wait_for(lambda: is_past(trainer, 5), "progress")
    [pod] = cluster.find(trainjob_name("run/train")).pods
    trainer.jobs.CancelJob(jobs_service_pb2.CancelJobRequest(job_id=job.job_id, reason="enough"))
    ended = trainer.finish(job)
    assert ended.state == State.STATE_CANCELLED
    assert pod.process.poll() == 75
    assert cluster.find(trainjob_name("run/train")) is None


def test_a_trainjob_that_fails_fails_the_job_with_its_log_tail_and_a_retry_resumes(start, cluster, folder):
    trainer = start()
    job = train(trainer, folder, steps=ENDLESS)
    wait_for(lambda: is_past(trainer, 5), "progress")
    [pod] = cluster.find(trainjob_name("run/train")).pods
    with pod.log.open("a") as log:
        log.write("CUDA_ERROR_OUT_OF_MEMORY: the last line\n")
    pod.process.send_signal(signal.SIGKILL)
    ended = trainer.finish(job)
    assert ended.state == State.STATE_FAILED
    assert "GPT2_TRAINJOB_MEMORY" in ended.error.message
    assert "the last line" in ended.error.message
    assert train(trainer, folder, steps=ENDLESS, retry_failed=True).state == State.STATE_QUEUED
    wait_for(lambda: is_past(trainer, 5), "progress after the retry")
    assert len(cluster.created) == 2
    assert steps_of(cluster.find(trainjob_name("run/train")).pods[0])[0] >= 5, "the retry began from nothing"


def test_a_training_whose_streams_fall_silent_ends_when_its_trainjob_ends(start, cluster, folder):
    trainer = start()
    job = train(trainer, folder, steps=1000)
    wait_for(lambda: is_past(trainer, 5), "progress")
    cluster.fall_silent()
    ended = trainer.finish(job)
    assert ended.state == State.STATE_SUCCEEDED, ended.error
    assert [output.name for output in ended.outputs] == ["checkpoint", "logs", "samples"]


def test_the_outcome_does_not_need_the_log(start, cluster, folder):
    cluster.log_outages = 1_000_000
    trainer = start()
    ended = trainer.finish(train(trainer, folder))
    assert ended.state == State.STATE_SUCCEEDED, ended.error
    cluster.log_outages = 0
    seen = trainer.finish(train(trainer, folder, job_id="run/seen"))
    facts = [[(output.name, output.kind, dict(output.counts)) for output in job.outputs] for job in (ended, seen)]
    assert facts[0] == facts[1]
    cluster.log_outages = 1_000_000
    (folder / "dataset" / "train-00001.npy").unlink()
    failed = trainer.finish(train(trainer, folder, job_id="run/failed"))
    assert failed.state == State.STATE_FAILED
    assert "exit status 1" in failed.error.message


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (
            'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: spec.RuntimeRef: Invalid '
            'value: {"name":"gpt2-trainer"}: TrainingRuntime not found',
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
        (
            'trainjobs.trainer.kubeflow.org "gpt2-x" is forbidden: exceeded quota: trainings, requested: '
            "count/trainjobs.trainer.kubeflow.org=1, used: 2, limited: 2",
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        ),
    ],
)
def test_a_refusal_that_is_not_of_rights_is_passed_on_as_it_is(start, cluster, folder, refusal, code):
    cluster.refusal = refusal
    trainer = start()
    ended = trainer.finish(train(trainer, folder))
    assert ended.state == State.STATE_FAILED
    assert ended.error.message.endswith(refusal)
    assert "Role" not in ended.error.message
    assert ended.error.code == code.value[0]


def test_an_error_is_in_the_pods_status_too():
    error = status_pb2.Status(code=code_pb2.DATA_LOSS, message="ß" * 10_000)
    text = termination_message(Failed(error))
    assert len(text.encode()) <= 4096
    state = {"terminated": {"exitCode": 1, "reason": "Error", "message": text}}
    pod = {"status": {"containerStatuses": [{"name": "node", "state": state}]}}
    found = failure_of({"reason": "JobsFailed"}, pod, [])
    assert found.code == code_pb2.DATA_LOSS
    assert found.message.startswith("ßßß")
    state["terminated"]["message"] = "Segmentation fault"
    assert "Segmentation fault" in failure_of({"reason": "JobsFailed"}, pod, []).message


def test_a_training_waits_for_the_pod_of_each_node():
    def pod(**state):
        return {"status": {"containerStatuses": [{"name": "node", "state": state}]}}

    running, failed = pod(running={}), pod(terminated={"exitCode": 1})
    unscheduled = {"status": {"conditions": [{"status": "False", "message": "Insufficient nvidia.com/gpu"}]}}
    assert why_waiting([]) == "waiting for the cluster"
    assert why_waiting([running, failed]) == ""
    assert "ErrImagePull" in why_waiting([running, pod(waiting={"reason": "ErrImagePull"})])
    assert "Insufficient nvidia.com/gpu" in why_waiting([running, unscheduled])
    assert [is_failed(item) for item in (failed, running, pod(terminated={"exitCode": 75}), {})] == [True, *[False] * 3]


def test_what_the_work_itself_finds_wrong_is_the_jobs_error(start, cluster, folder):
    trainer = start()
    (folder / "dataset" / "train-00001.npy").unlink()
    ended = trainer.finish(train(trainer, folder))
    assert ended.state == State.STATE_FAILED
    assert "is missing: make the artifact again" in ended.error.message
    cluster.allowed.discard(("create", "trainer.kubeflow.org", "trainjobs"))
    refused = trainer.finish(train(trainer, folder, job_id="refused"))
    assert refused.state == State.STATE_FAILED
    assert "needs the Role" in refused.error.message


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "GPT2_TRAINJOB_IMAGE"),
        ({"GPT2_TRAINJOB_IMAGE": "image", "GPT2_TRAINJOB_SECRETS": "A=b"}, "NAME=SECRET/KEY"),
        ({"GPT2_TRAINJOB_IMAGE": "image", "GPT2_TRAINJOB_RUNTIME": "jax"}, "GPT2_TRAINJOB_RUNTIME"),
        ({"GPT2_TRAINJOB_IMAGE": "image", "GPT2_TRAINJOB_MEMORY": "much"}, "GPT2_TRAINJOB_MEMORY"),
        ({"GPT2_TRAINJOB_IMAGE": "image"}, "GPT2_KUBERNETES_API"),
    ],
)
def test_wrong_settings_are_refused_at_start(monkeypatch, variables, message):
    monkeypatch.setenv("GPT2_TRAINING_BACKEND", "trainjob")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=message):
        ClusterAddress.of(load_settings(TrainerSettings), {})


@pytest.mark.process
def test_a_service_without_a_cluster_says_so_and_ends(tmp_path):
    variables = {"GPT2_TRAINING_BACKEND": "trainjob", "GPT2_TRAINJOB_IMAGE": "image", "GPT2_LISTEN": "127.0.0.1:0"}
    command = [sys.executable, "-m", "gpt2_trainer"]
    answer = subprocess.run(
        command, env={**os.environ, **variables}, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 78
    assert "GPT2_KUBERNETES_API" in answer.stderr


@pytest.mark.parametrize(
    ("gpus", "devices", "model_devices", "field"),
    [(1, 1, 0, None), (0, 1, 1, None), (8, 8, 2, None), (1, 2, 0, "config.devices"), (2, 0, 4, "config.model_devices")],
)
def test_more_devices_than_a_trainjob_has_are_refused(gpus, devices, model_devices, field):
    request = pb.TrainModelRequest(config=pb.TrainConfig(devices=devices, model_devices=model_devices))
    assert [found for found, _ in trainjob_problems(request, gpus, 0)] == [field] * (field is not None)
