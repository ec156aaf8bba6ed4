"""The trainer's process and its clients."""

import os
import subprocess
import sys
import time
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gpt2.jobs.v1 import jobs_service_pb2, jobs_service_pb2_grpc
from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2.trainer.v1 import trainer_service_pb2_grpc


class Trainer:
    """The service's process and its clients."""

    def __init__(self, folder, **variables):
        environment = {
            **os.environ,
            "GPT2_LISTEN": "127.0.0.1:0",
            "GPT2_ARTIFACT_ROOT": str(folder / "artifacts"),
            "GPT2_ALLOWED_ROOTS": str(folder),
            "GPT2_DATABASE_URL": f"sqlite:///{folder / 'jobs.db'}",
            "GPT2_KAFKA_BOOTSTRAP_SERVERS": "",
            "GPT2_KERAS_BACKEND": "jax",
            **variables,
        }
        self.log = folder / "trainer.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gpt2_trainer"], env=environment, stderr=log, cwd=folder
            )
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self._port()}")
        self.trainer = trainer_service_pb2_grpc.TrainerServiceStub(self.channel)
        self.jobs = jobs_service_pb2_grpc.JobsServiceStub(self.channel)
        health_pb2_grpc.HealthStub(self.channel).Check(
            health_pb2.HealthCheckRequest(), timeout=240, wait_for_ready=True
        )

    def _port(self):
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            for line in self.log.read_text().splitlines():
                if '"port": ' in line:
                    return int(line.partition('"port": ')[2].rstrip("}").partition(",")[0])
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def finish(self, job):
        request = jobs_service_pb2.WatchJobRequest(job_id=job.job_id)
        *_, last = (answer.job for answer in self.jobs.WatchJob(request, timeout=600))
        return last

    def generate(self, **arguments):
        """Text and finish reason of each sample."""
        texts, reasons = {}, {}
        for answer in self.trainer.Generate(pb.GenerateRequest(**arguments), timeout=120):
            texts[answer.sample] = texts.get(answer.sample, "") + answer.text
            if answer.finish_reason:
                reasons[answer.sample] = answer.finish_reason
        return texts, reasons

    def workers(self, module="gpt2_trainer.generation.worker"):
        """Processes that run a module: by default those that generate text."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(child) for child in children if module.encode() in Path(f"/proc/{child}/cmdline").read_bytes()]
