"""The process of a TrainJob's pod, without a cluster, and several of them as the nodes of one training."""

import base64
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from gpt2_common.jobs.messages import decode_message
from gpt2_common.jobs.outcome import Succeeded
from gpt2_trainer.trainjobs.manifest import TASK_VARIABLE
from gpt2_trainer.trainjobs.pod import LOG_PREFIX
from gpt2_trainer.trainjobs.pod_status import EXIT_FAILED

TIMEOUT_SECONDS = 900


class Pod:
    """The process of a TrainJob's pod, and its log."""

    def __init__(self, folder, name, request, module="gpt2_trainer.trainjobs.pod", **variables):
        task = {
            "service": "trainer",
            "job_id": "run/train",
            "run_id": "run",
            "attempt": 1,
            "request_digest": "0" * 64,
            "function": "gpt2_trainer.jobs.train:train_model",
            "settings": "gpt2_trainer.settings:TrainerSettings",
            "request_type": "gpt2.trainer.v1.trainer_service_pb2:TrainModelRequest",
            "request": base64.b64encode(request.SerializeToString()).decode(),
        }
        environment = {
            **os.environ,
            TASK_VARIABLE: json.dumps(task),
            "GPT2_ARTIFACT_ROOT": str(folder / "artifacts"),
            "GPT2_ALLOWED_ROOTS": str(folder),
            "GPT2_KERAS_BACKEND": "jax",
            **variables,
        }
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module], env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def messages(self):
        lines = self.log.read_text(errors="replace").splitlines()
        whole = [line for line in lines if line.startswith(LOG_PREFIX) and line.endswith("}")]
        return [decode_message(json.loads(line.removeprefix(LOG_PREFIX))) for line in whole]

    def is_past(self, step):
        return any(getattr(item, "unit", "") == "steps" and item.done > step for item in self.messages())

    def wait_for_step(self, step):
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not self.is_past(step):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)


class Nodes:
    """The pods of a training on several nodes, as Kubeflow Trainer's JAX runtime and a Job start them.

    Args:
        folder: Where they work.
        name: What their logs are named after.
        count: How many nodes.
        request: What they train.
        variables: More of their environment.
    """

    def __init__(self, folder, name, count, request, **variables):
        self.folder, self.name, self.request = folder, name, request
        support = str(Path(__file__).resolve().parents[1])
        common = {
            "JAX_NUM_PROCESSES": str(count),
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
            "PYTHONPATH": support,
            "GPT2_NODE_HEARTBEAT_SECONDS": "10",
        }
        self.variables = common | variables
        self.started = []
        self.pods = [self._start(index) for index in range(count)]

    def _start(self, index):
        name = f"{self.name}-{len(self.started):03d}-{index}"
        batches = self.folder / "batches" / f"{name}.jsonl"
        rank = {"JAX_PROCESS_ID": str(index), "RECORDED_BATCHES": str(batches)}
        pod = Pod(self.folder, name, self.request, "trainer_support.recording_pod", **(self.variables | rank))
        self.started.append(pod)
        return pod

    def replace_ended(self):
        """Replaces each pod that another one can resume, as an indexed Job does. Returns whether all have succeeded."""
        statuses = [pod.process.poll() for pod in self.pods]
        for index, status in enumerate(statuses):
            assert status != EXIT_FAILED, self.logs()
            if status:
                self.pods[index] = self._start(index)
        return statuses == [0] * len(statuses)

    def wait(self):
        """Exit statuses, once all have ended."""
        try:
            return [pod.process.wait(TIMEOUT_SECONDS) for pod in self.pods]
        finally:
            self.kill()

    def finish(self):
        """The outputs of a training that succeeds."""
        assert self.wait() == [0] * len(self.pods), self.logs()
        outcome = self.pods[0].messages()[-1]
        assert isinstance(outcome, Succeeded), outcome
        assert not any(pod.messages()[:-1] for pod in self.pods[1:]), "another node than the first reports"
        return {item.name: {"uri": item.uri, "digest": item.digest, **item.properties} for item in outcome.outputs}

    def kill(self):
        for pod in self.pods:
            pod.process.kill()
            pod.process.wait()

    def logs(self):
        return "\n".join(f"{pod.log.name}:\n{pod.log.read_text(errors='replace')[-4000:]}" for pod in self.pods)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def recorded_batches(folder):
    """The windows that nodes have read, in the order of reading: pairs of a step and its windows by row."""
    found = []
    for path in sorted((folder / "batches").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            if line.endswith("}"):  # else its writer was killed
                item = json.loads(line)
                found.append((item["time"], item["step"], dict(zip(item["rows"], item["windows"], strict=True))))
    return [(step, windows) for _, step, windows in sorted(found, key=lambda item: item[0])]
