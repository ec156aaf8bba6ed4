"""Two attempts of one training at work in one folder: the one that began first ends, and harms nothing."""

import base64
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from trainer_support.data import make_dataset
from trainer_support.jobs import make_context

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.artifacts.claim import Claim
from gpt2_common.errors import JobSuperseded
from gpt2_common.jobs.messages import decode_message
from gpt2_common.jobs.outcome import Succeeded
from gpt2_trainer.trainjobs.manifest import TASK_VARIABLE
from gpt2_trainer.trainjobs.pod import EXIT_SUSPENDED, LOG_PREFIX


class Pod:
    """The process of a TrainJob's pod, and its log."""

    def __init__(self, folder, name, steps):
        request = pb.TrainModelRequest(
            dataset_uri=(folder / "dataset").as_uri(),
            model=pb.ModelConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=16),
            config=pb.TrainConfig(steps=steps, batch_size=4, sample_length=1, save_every=3, validate_every=10),
        )
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
        variables = {
            TASK_VARIABLE: json.dumps(task),
            "GPT2_ARTIFACT_ROOT": str(folder / "artifacts"),
            "GPT2_ALLOWED_ROOTS": str(folder),
            "GPT2_KERAS_BACKEND": "jax",
        }
        self.log = folder / f"{name}.log"
        command = [sys.executable, "-m", "gpt2_trainer.trainjobs.pod"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, **variables}, stdout=log, stderr=subprocess.STDOUT
            )

    def messages(self):
        lines = self.log.read_text().splitlines()
        whole = [line for line in lines if line.startswith(LOG_PREFIX) and line.endswith("}")]
        return [decode_message(json.loads(line.removeprefix(LOG_PREFIX))) for line in whole]

    def wait_for_step(self, step):
        deadline = time.monotonic() + 300
        while not any(getattr(item, "unit", "") == "steps" and item.done > step for item in self.messages()):
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)


@pytest.mark.process
def test_a_training_that_stood_still_while_another_took_over_ends_and_the_other_succeeds(tmp_path):
    make_dataset(tmp_path / "dataset")
    pods = []
    try:
        pods.append(Pod(tmp_path, "first", steps=120))
        pods[0].wait_for_step(6)
        pods[0].process.send_signal(signal.SIGSTOP)
        pods.append(Pod(tmp_path, "second", steps=120))
        pods[1].wait_for_step(9)
        pods[0].process.send_signal(signal.SIGCONT)
        assert pods[0].process.wait(300) == EXIT_SUSPENDED
        log = pods[0].log.read_text()
        assert "a later attempt of this job has begun" in log
        assert "Traceback" not in log
        assert pods[1].process.wait(300) == 0, pods[1].log.read_text()
        outcome = pods[1].messages()[-1]
        assert isinstance(outcome, Succeeded)
        context = make_context(tmp_path)
        for output in outcome.outputs:
            opened = context.open(output.name, output.uri, output.kind, verify=True)
            assert opened.digest == output.digest, output.name
    finally:
        for pod in pods:
            pod.process.kill()
            pod.process.wait()


def test_an_artifact_of_a_superseded_attempt_is_not_published(tmp_path):
    old, new = make_context(tmp_path), make_context(tmp_path)
    old.claim()
    with old.create("model", "model") as early:
        (early.folder / "file").write_text("old")
        new.claim()
        with new.create("model", "model") as late:
            (late.folder / "file").write_text("new")
            published = late.commit()
        early.folder.mkdir(parents=True, exist_ok=True)
        (early.folder / "file").write_text("old")
        with pytest.raises(JobSuperseded, match="another attempt of this job"):
            early.commit()
    assert new.open("model", published.uri, "model", verify=True).digest == published.digest
    with pytest.raises(JobSuperseded):
        old.check_cancelled()
    with pytest.raises(JobSuperseded):
        old.remove_work()
    new.check_cancelled()
    new.remove_work()
    assert old.is_superseded()


def test_of_many_attempts_that_begin_at_once_one_remains(tmp_path):
    claims = [Claim.take(tmp_path) for _ in range(20)]
    for claim in claims[:-1]:
        with pytest.raises(JobSuperseded):
            claim.check()
    claims[-1].check()
    assert [path.name for path in tmp_path.iterdir()] == ["attempt"]
