"""Ctrl-C on a running pipeline: the job at work is cancelled, and the command says so."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt2.jobs.v1 import job_pb2
from gpt2_orchestration.client.service_client import connect

SPECIFICATION = """
name: interrupted-%s
import_files: {uris: ["%s"]}
train_tokenizer: {vocabulary_size: 300}
encode_corpus: {validation_fraction: 0.5}
train_model:
  model: {n_layer: 1, n_head: 2, n_embd: 16, n_ctx: 16}
  config: {steps: 1000000}
register_model: {model_name: interrupted}
"""


@pytest.mark.parametrize("runner", ["local", pytest.param("beam", marks=pytest.mark.exhaustive)])
def test_ctrl_c_cancels_the_job_at_work(stack, tmp_path, runner):
    texts = stack.folder.parent / f"interrupted-{runner}"
    texts.mkdir()
    for number in range(20):
        (texts / f"{number}.txt").write_text(f"{number} bottles of beer on the wall, " * 40)
    (tmp_path / "interrupted.yaml").write_text(SPECIFICATION % (runner, texts.as_uri()))
    addresses = {f"GPT2_{name.upper()}_ADDRESS": address for name, address in stack.client.addresses.items()}
    log = tmp_path / "output"
    with log.open("wb") as output:
        command = [Path(sys.executable).with_name("gpt2"), "run", "interrupted.yaml", "--runner", runner]
        process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **addresses}, stderr=output)
    deadline = time.monotonic() + 180
    while "  training" not in log.read_text() and "TrainModel       training" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, log.read_text()
    assert log.read_text().splitlines()[-1] == "gpt2: interrupted"
    with connect("trainer", stack.client) as trainer:
        job = next(job for job in trainer.jobs("") if job.job_id.startswith(f"interrupted-{runner}-"))
        while job.state == job_pb2.Job.STATE_RUNNING:
            assert time.monotonic() < deadline
            time.sleep(0.2)
            [job] = [again for again in trainer.jobs("") if again.job_id == job.job_id]
    assert job.state == job_pb2.Job.STATE_CANCELLED
    assert "the pipeline was interrupted" in job.error.message
