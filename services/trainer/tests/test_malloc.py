"""A training's process keeps the memory of its steps, wherever it runs; the person who runs the service may decide."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from trainer_support.data import make_dataset
from trainer_support.service import Trainer

from gpt2.jobs.v1 import job_pb2, jobs_service_pb2
from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_trainer.memory import MALLOC_ENVIRONMENT

pytestmark = pytest.mark.process

TUNABLES = "GLIBC_TUNABLES"


@pytest.mark.parametrize("backend", ["tensorflow", pytest.param("jax", marks=pytest.mark.exhaustive)])
def test_a_step_takes_no_pages_that_another_has_had(backend, tmp_path):
    """It takes 10 to 20 thousand otherwise."""
    done = subprocess.run(
        [sys.executable, "-m", "trainer_support.page_faults", backend, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), **MALLOC_ENVIRONMENT},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout.split()[-1]) < 1000


@pytest.mark.parametrize("own", [{}, {TUNABLES: "glibc.malloc.check=1"}])
def test_a_training_job_starts_so_where_nothing_else_is_set(own, tmp_path):
    make_dataset(tmp_path / "dataset")
    trainer = Trainer(tmp_path, **own)
    try:
        request = pb.TrainModelRequest(
            dataset_uri=(tmp_path / "dataset").as_uri(),
            model=pb.ModelConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=16),
            config=pb.TrainConfig(steps=1_000_000, batch_size=4),
        )
        job = trainer.trainer.TrainModel(request).job
        found = []
        deadline = time.monotonic() + 60
        while not found:
            assert time.monotonic() < deadline
            found = trainer.workers("gpt2_common.jobs.worker")
            time.sleep(0.05)
        # Where the process starts, glibc ends each tunable with a NUL.
        variables = ":" + Path(f"/proc/{found[0]}/environ").read_text().replace("\0", ":")
        assert f":{TUNABLES}={(own or MALLOC_ENVIRONMENT)[TUNABLES]}:" in variables
        trainer.jobs.CancelJob(jobs_service_pb2.CancelJobRequest(job_id=job.job_id))
        assert trainer.finish(job).state == job_pb2.Job.STATE_CANCELLED
    finally:
        trainer.channel.close()
        trainer.process.terminate()
        trainer.process.wait(60)
