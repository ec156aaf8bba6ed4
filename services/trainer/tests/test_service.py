"""The trainer as its callers see it: a real process, over real sockets, from dataset to streamed text."""

import os
import signal
import time
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from trainer_support.data import make_dataset
from trainer_support.service import Trainer

from gpt2.jobs.v1 import job_pb2
from gpt2.trainer.v1 import trainer_service_pb2 as pb

pytestmark = pytest.mark.process

Reason = pb.GenerateResponse
IDLE_SECONDS = 3.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    make_dataset(folder / "dataset")
    return folder


@pytest.fixture(scope="module")
def service(folder):
    temporary = folder / "temporary"
    temporary.mkdir()
    service = Trainer(folder, GPT2_GENERATE_IDLE_SECONDS=str(IDLE_SECONDS), TMPDIR=str(temporary))
    yield service
    service.channel.close()
    service.process.terminate()
    assert service.process.wait(30) == 0
    assert not list(temporary.iterdir())


@pytest.fixture(scope="module")
def model_uri(service, folder):
    """A model that was trained and exported by the service."""
    request = pb.TrainModelRequest(
        job=job_pb2.JobOptions(job_id="run/train"),
        dataset_uri=(folder / "dataset").as_uri(),
        model=pb.ModelConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=16),
        config=pb.TrainConfig(steps=4, batch_size=4, sample_length=1),
    )
    trained = service.finish(service.trainer.TrainModel(request).job)
    assert trained.state == job_pb2.Job.STATE_SUCCEEDED, trained.error
    assert [output.name for output in trained.outputs] == ["checkpoint", "logs", "samples"]
    assert trained.progress.phase == "publishing"
    assert service.trainer.TrainModel(request).job.outputs == trained.outputs
    export = pb.ExportModelRequest(checkpoint_uri=trained.outputs[0].uri)
    exported = service.finish(service.trainer.ExportModel(export).job)
    assert exported.state == job_pb2.Job.STATE_SUCCEEDED, exported.error
    return exported.outputs[0].uri


def test_the_service_itself_loads_no_framework(service, model_uri):
    service.generate(model_uri=model_uri, max_tokens=1)
    loaded = Path(f"/proc/{service.process.pid}/maps").read_text()
    assert "python" in loaded
    assert not [name for name in ("_pywrap_tensorflow", "jaxlib", "keras") if name in loaded]


def test_compiled_programs_of_training_and_generation_are_kept(service, model_uri, folder):
    service.generate(model_uri=model_uri, max_tokens=1)
    names = {path.name.partition("-")[0] for path in folder.glob(".gpt2/compiled/*/*-cache")}
    assert {"jit_update", "jit__step"} <= names


def test_text_is_generated_side_by_side(service, model_uri):
    arguments = {"model_uri": model_uri, "prompt": "the", "samples": 3, "max_tokens": 20, "seed": 1}
    texts, reasons = service.generate(**arguments)
    assert set(reasons) == {0, 1, 2}
    assert set(reasons.values()) <= {Reason.FINISH_REASON_LENGTH, Reason.FINISH_REASON_END_TOKEN}
    assert len(set(texts.values())) == 3
    assert service.generate(**arguments) == (texts, reasons)
    assert service.generate(**{**arguments, "seed": 2})[0] != texts


def test_each_of_many_prompts_gives_the_text_of_a_call_with_it_alone(service, model_uri):
    prompts = ["the", "", "then", "the", "a longer beginning of a text", "thé", "ab"]
    options = {
        "model_uri": model_uri, "samples": 2, "max_tokens": 12, "seed": 1,
        "sampling": pb.SamplingConfig(repetition_penalty=1.2, no_repeat_ngram_size=3),
    }  # fmt: skip
    texts = {(number, sample): "" for number in range(len(prompts)) for sample in range(2)}
    ended = []
    for piece in service.trainer.Generate(pb.GenerateRequest(prompts=prompts, **options), timeout=120):
        texts[piece.prompt, piece.sample] += piece.text
        if piece.finish_reason:
            ended.append((piece.prompt, piece.sample))
    assert sorted(ended) == sorted(texts)
    for number in (0, 1, 3, 4):
        alone, _ = service.generate(prompt=prompts[number], **options)
        assert alone == {sample: texts[number, sample] for sample in range(2)}


def test_without_a_seed_each_call_differs(service, model_uri):
    texts = {service.generate(model_uri=model_uri, max_tokens=30)[0][0] for _ in range(3)}
    assert len(texts) == 3


def test_a_stop_ends_a_sample(service, model_uri):
    arguments = {"model_uri": model_uri, "max_tokens": 40, "seed": 5}
    [text] = service.generate(**arguments)[0].values()
    stop = next(character for character in text[3:] if character not in text[:3] and character != "\ufffd")
    texts, reasons = service.generate(**arguments, stop=[stop])
    assert texts[0] == text[: text.index(stop)]
    assert reasons == {0: Reason.FINISH_REASON_STOP}


def test_a_cancelled_call_stops_the_work_and_the_next_one_is_served(service, model_uri):
    service.generate(model_uri=model_uri, max_tokens=1)
    [before] = service.workers()
    call = service.trainer.Generate(pb.GenerateRequest(model_uri=model_uri, max_tokens=1_000_000, seed=1), timeout=120)
    next(iter(call))
    call.cancel()
    started = time.monotonic()
    texts, _ = service.generate(model_uri=model_uri, max_tokens=3, seed=1)
    assert time.monotonic() - started < 10
    assert list(texts) == [0]
    [after] = service.workers()
    assert after == before


def test_an_idle_model_is_unloaded_and_loaded_again(service, model_uri):
    service.generate(model_uri=model_uri, max_tokens=1)
    [worker] = service.workers()
    variables = dict(line.split("=", 1) for line in Path(f"/proc/{worker}/environ").read_text().split("\0") if line)
    # What a library would leave there goes with the process.
    left = Path(variables["TMPDIR"]) / "left"
    left.touch()
    deadline = time.monotonic() + IDLE_SECONDS + 10
    while service.workers() or left.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert service.generate(model_uri=model_uri, max_tokens=1)[1]


def test_a_generating_process_that_dies_is_said_and_replaced(service, model_uri):
    service.generate(model_uri=model_uri, max_tokens=1)
    call = service.trainer.Generate(pb.GenerateRequest(model_uri=model_uri, max_tokens=1_000_000), timeout=120)
    next(iter(call))
    [worker] = service.workers()
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "has crashed" in caught.value.details()
    assert service.generate(model_uri=model_uri, max_tokens=1)[1]


def _answered(answer):
    return list(answer) if hasattr(answer, "__iter__") else answer


def violations(call):
    with pytest.raises(grpc.RpcError) as caught:
        _answered(call())
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    for detail in rpc_status.from_call(caught.value).details:
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad_request = error_details_pb2.BadRequest()
            detail.Unpack(bad_request)
            return [violation.field for violation in bad_request.field_violations]
    raise AssertionError("no BadRequest in the details")


def test_wrong_requests_are_refused_with_their_fields(service, folder):
    stub = service.trainer
    train = pb.TrainModelRequest(job=job_pb2.JobOptions(job_id="../x"), config=pb.TrainConfig(steps=1, noise=2.0))
    assert violations(lambda: stub.TrainModel(train)) == ["job.job_id", "dataset_uri", "start", "config.noise"]
    assert violations(lambda: stub.ImportCheckpoint(pb.ImportCheckpointRequest())) == ["source"]
    assert violations(lambda: stub.ExportModel(pb.ExportModelRequest())) == ["checkpoint_uri"]
    assert violations(lambda: stub.Generate(pb.GenerateRequest(model_uri="file:///etc"))) == ["model_uri"]
    dataset = (folder / "dataset").as_uri()
    assert violations(lambda: stub.Generate(pb.GenerateRequest(model_uri=dataset))) == ["model_uri"]
    assert violations(lambda: stub.Generate(pb.GenerateRequest(samples=99))) == ["model_uri", "samples"]
