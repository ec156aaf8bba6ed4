"""Runs job functions as the service's child processes do."""

import base64
import json
import os
import signal
import sys
from pathlib import Path

from gpt2.jobs.v1 import job_pb2
from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.jobs.context import Interruption, JobContext, JobIdentity
from gpt2_trainer.settings import TrainerSettings


def make_context(folder: Path, job_id: str = "job", attempt: int = 1, **settings: object) -> JobContext:
    """A context whose progress is in `reports`, and which `interruption` stops."""
    reports: list[job_pb2.Progress] = []
    interruption = Interruption()
    values = {"artifact_root": str(folder / "artifacts"), "allowed_roots": str(folder), **settings}
    identity = JobIdentity(service="trainer", job_id=job_id, run_id=job_id, request_digest="0" * 64, attempt=attempt)
    context = JobContext(identity, TrainerSettings(**values), reports.append, interruption)
    context.reports, context.interruption = reports, interruption
    return context


def folder(output: dict[str, str]) -> Path:
    """Where an output of a job is."""
    return Path(output["uri"].removeprefix("file://"))


def metrics(outputs: dict[str, dict[str, str]]) -> list[dict[str, float]]:
    """What a training reported."""
    return [json.loads(line) for line in (folder(outputs["logs"]) / "metrics.jsonl").read_text().splitlines()]


def train_and_die(request: bytes, folder: str, backend: str, phase: str, step: int) -> None:
    """Trains as the job `job`, and is killed, as by `kill -9`, in a phase at a step.

    In the phase `writing` that is when a checkpoint's files are there, and its manifest is not.
    """
    from gpt2_trainer.jobs.train import train_model
    from gpt2_trainer.training import checkpoint_manager

    context = make_context(Path(folder), keras_backend=backend)
    report, write = context.report, checkpoint_manager.write_checkpoint

    def report_and_die(now: str, done: float = 0, *arguments: object) -> None:
        report(now, done, *arguments)
        if (now, done) == (phase, step):
            os.kill(os.getpid(), signal.SIGKILL)

    def write_and_die(target, checkpoint, tokenizer) -> None:
        write(target, checkpoint, tokenizer)
        if phase == "writing" and checkpoint.state.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    context.report, checkpoint_manager.write_checkpoint = report_and_die, write_and_die
    train_model(pb.TrainModelRequest.FromString(request), context)


if __name__ == "__main__":
    train_and_die(base64.b64decode(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
