"""Two attempts of one training at work in one folder: the one that began first ends, and harms nothing."""

import signal

import pytest
from trainer_support.data import make_dataset
from trainer_support.jobs import make_context
from trainer_support.pods import Pod

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.artifacts.claim import Claim
from gpt2_common.errors import JobSuperseded
from gpt2_common.jobs.outcome import Succeeded
from gpt2_trainer.trainjobs.pod import EXIT_SUSPENDED


def start_pod(folder, name):
    request = pb.TrainModelRequest(
        dataset_uri=(folder / "dataset").as_uri(),
        model=pb.ModelConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=16),
        config=pb.TrainConfig(steps=120, batch_size=4, sample_length=1, save_every=3, validate_every=10),
    )
    return Pod(folder, name, request)


@pytest.mark.process
def test_a_training_that_stood_still_while_another_took_over_ends_and_the_other_succeeds(tmp_path):
    make_dataset(tmp_path / "dataset")
    pods = []
    try:
        pods.append(start_pod(tmp_path, "first"))
        pods[0].wait_for_step(6)
        pods[0].process.send_signal(signal.SIGSTOP)
        pods.append(start_pod(tmp_path, "second"))
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


def test_the_other_nodes_of_an_attempt_end_with_its_claim(tmp_path):
    first, other, later = (make_context(tmp_path) for _ in range(3))
    first.claim()
    other.join(first.claim_token)
    other.check_cancelled()
    assert not first.is_superseded()
    later.claim()
    assert other.is_superseded()
    with pytest.raises(JobSuperseded):
        other.require_claim()
    later.require_claim()


def test_of_many_attempts_that_begin_at_once_one_remains(tmp_path):
    claims = [Claim.take(tmp_path) for _ in range(20)]
    for claim in claims[:-1]:
        with pytest.raises(JobSuperseded):
            claim.check()
    claims[-1].check()
    assert [path.name for path in tmp_path.iterdir()] == ["attempt"]
