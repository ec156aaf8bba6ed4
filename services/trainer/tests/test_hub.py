"""Imports of models by their id on a Hugging Face hub, against a local server that speaks its protocol."""

import json
import re

import numpy as np
import pytest
from hub_server import COMMIT, REPOSITORY, Hub
from trainer_support import jobs
from trainer_support.data import make_tokenizer, random_weights, small_architecture
from trainer_support.sources import write_huggingface_files, write_shards

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.errors import DataLoss, FailedPrecondition, InvalidRequest, JobCancelled, NotFound, Unavailable
from gpt2_common.hub import HubAddress
from gpt2_trainer.formats.checkpoint import read_checkpoint
from gpt2_trainer.jobs.import_checkpoint import import_checkpoint

WEIGHTS = random_weights(small_architecture())
URI = f"hf://{REPOSITORY}"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    folder = tmp_path / "repository"
    make_tokenizer(folder)
    for name in ("encoder.json", "vocab.bpe"):
        (folder / name).unlink()
    write_huggingface_files(folder, WEIGHTS, "transformer.")
    for name in ("pytorch_model.bin", "model.onnx", "README.md", "rust_model.ot", "training_args.bin"):
        (folder / name).write_text("not to be downloaded")
    (folder / "generation_config.json").write_text("{}")
    server = Hub(folder)
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    server.close()


@pytest.fixture
def import_model(tmp_path):
    def run(uri=URI, job_id="import", roots="hf://", context=None, **settings):
        values = {"allowed_roots": f"{tmp_path},{roots}", "hub_cache": tmp_path / "cache", **settings}
        context = context or jobs.make_context(tmp_path, job_id, **values)
        outputs = import_checkpoint(pb.ImportCheckpointRequest(uri=uri), context)
        return {item.name: item for item in outputs}

    return run


def assert_imported(outputs):
    checkpoint = read_checkpoint(jobs.folder({"uri": outputs["checkpoint"].uri}), with_optimizer=False)
    for name, value in WEIGHTS.items():
        np.testing.assert_array_equal(checkpoint.weights[name], value, err_msg=name)
    return checkpoint


@pytest.mark.parametrize("revision", ["", "@main", "@v1.0", f"@{COMMIT}"])
def test_a_hub_model_is_imported_at_a_commit_that_the_lineage_names(hub, import_model, revision):
    outputs = import_model(URI + revision)
    assert outputs.keys() == {"checkpoint", "tokenizer"}
    checkpoint = assert_imported(outputs)
    assert checkpoint.state.source == f"{URI}@{COMMIT}"
    assert {item.properties["source"] for item in outputs.values()} == {f"{URI}@{COMMIT}"}
    wanted = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(set(hub.downloads())) == wanted


def test_shards_of_a_hub_model_come_with_their_index(hub, import_model):
    (hub.folder / "model.safetensors").unlink()
    names = write_shards(hub.folder, WEIGHTS)
    assert_imported(import_model())
    assert {*names, "model.safetensors.index.json"} <= set(hub.downloads())


@pytest.mark.parametrize(
    ("roots", "uri"),
    [("", URI), ("hf://other", URI), (f"hf://{REPOSITORY}", "hf://lab/other"), ("hf://lab/small", URI)],
)
def test_a_hub_model_outside_the_allowed_roots_is_refused_unasked(hub, import_model, roots, uri):
    with pytest.raises(InvalidRequest, match=re.escape("outside the allowed roots")) as refusal:
        import_model(uri, roots=roots)
    assert "GPT2_ALLOWED_ROOTS" in str(refusal.value)
    assert hub.requests == []


@pytest.mark.parametrize("roots", ["hf://", "hf://lab", f"hf://{REPOSITORY}"])
@pytest.mark.parametrize("revision", ["", "@v1.0"])
def test_roots_allow_a_hub_an_organisation_or_a_model(hub, import_model, roots, revision):
    assert_imported(import_model(URI + revision, roots=roots))
    assert hub.requests


@pytest.mark.parametrize("uri", ["hf://", "hf://a/b/c", "hf://a/../b", "hf://a/b@", "hf://a/b?x=1", "hf://a b/c"])
def test_what_is_no_model_id_is_refused(import_model, uri):
    with pytest.raises(InvalidRequest, match=re.escape("hf://organisation/name")):
        import_model(uri)


def test_an_address_has_a_repository_and_a_revision():
    assert HubAddress.parse("hf://gpt2") == HubAddress("gpt2", "main")
    assert HubAddress.parse("hf://a/b@refs/pr/1") == HubAddress("a/b", "refs/pr/1")
    assert HubAddress.parse("hf://a/b@v1/").root == "hf://a/b"


@pytest.mark.parametrize(
    ("failures", "error", "part"),
    [
        ([(401, "RepoNotFound")], NotFound, "or is private: check its name, and set HF_TOKEN"),
        ([(404, "RepoNotFound")], NotFound, "does not exist at http://127.0.0.1"),
        ([(403, "GatedRepo")], FailedPrecondition, "is gated: accept its conditions"),
        ([(403, "")], FailedPrecondition, "set HF_TOKEN to one that may read"),
        ([(500, "")], Unavailable, "retry the job later"),
        ([(503, "")], Unavailable, "set HF_ENDPOINT to a mirror"),
        ([(429, "")], Unavailable, "retry the job later"),
    ],
)
def test_refusals_of_a_hub_say_what_to_do(hub, import_model, failures, error, part):
    hub.failures["main"] = failures
    with pytest.raises(error) as refusal:
        import_model()
    assert part in str(refusal.value)
    assert URI in str(refusal.value)


def test_a_revision_that_is_not_there_is_named(hub, import_model):
    with pytest.raises(NotFound, match="has no revision 'v9'"):
        import_model(f"{URI}@v9")


def test_a_hub_that_does_not_answer_is_unavailable(hub, import_model, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(Unavailable, match="retry the job later"):
        import_model()


def test_offline_mode_is_named(hub, import_model, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FailedPrecondition, match="while HF_HUB_OFFLINE is set"):
        import_model()


def test_a_token_from_the_environment_opens_a_private_model(hub, import_model, monkeypatch, caplog):
    hub.token = "hf_secret"
    with pytest.raises(NotFound, match="set HF_TOKEN"):
        import_model()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert_imported(import_model())
    assert "hf_secret" not in caplog.text
    assert hub.tokens_at_cdn == []


def test_whole_files_are_downloaded_once(hub, import_model):
    hub.failures["tokenizer.json"] = [(403, "")]
    with pytest.raises(FailedPrecondition, match="set HF_TOKEN to one that may read"):
        import_model()
    assert "model.safetensors" in hub.downloads()
    hub.failures.clear()
    hub.requests.clear()
    assert_imported(import_model())
    assert hub.downloads() == ["tokenizer.json"]
    hub.requests.clear()
    assert_imported(import_model(job_id="again"))
    assert hub.downloads() == []


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_file_that_is_not_what_its_etag_says_is_refused_and_not_kept(hub, import_model, name):
    hub.corrupt.add(name)
    with pytest.raises(DataLoss, match=f"{re.escape(name)} does not have the checksum of the hub's ETag"):
        import_model()
    hub.corrupt.clear()
    assert_imported(import_model())


def test_a_cancelled_import_stops_the_download(hub, import_model, tmp_path):
    context = jobs.make_context(tmp_path, allowed_roots="hf://", hub_cache=tmp_path / "cache")
    report = context.report

    def cancel_when_bytes_come(phase, done=0, *rest):
        report(phase, done, *rest)
        if done:
            context.interruption.cancel()

    context.report = cancel_when_bytes_come
    with pytest.raises(JobCancelled):
        import_model(context=context)
    assert not list((tmp_path / "artifacts").rglob("manifest.json"))


@pytest.mark.parametrize(
    ("there", "part"),
    [
        ("pytorch_model.bin", "pytorch_model.bin is a pickle file"),
        ("model.gguf", "model.gguf is a model of llama.cpp"),
        ("adapter_config.json", "adapter_config.json is a LoRA adapter"),
        (None, "has no model.safetensors"),
    ],
)
def test_a_hub_model_without_safetensors_is_named_before_anything_is_downloaded(hub, import_model, there, part):
    for path in hub.folder.iterdir():
        if path.name != "config.json":
            path.unlink()
    if there:
        (hub.folder / there).write_text("x")
    with pytest.raises(InvalidRequest, match=re.escape(part)):
        import_model()
    assert hub.downloads() == []


def test_progress_of_a_hub_download_counts_bytes(hub, import_model, tmp_path):
    context = jobs.make_context(tmp_path, allowed_roots="hf://", hub_cache=tmp_path / "cache")
    import_model(context=context)
    size = (hub.folder / "model.safetensors").stat().st_size
    reports = [item for item in context.reports if item.phase == "downloading"]
    assert {item.unit for item in reports} == {"bytes"}
    assert any(item.done == item.total == size for item in reports)
    assert json.loads((hub.folder / "config.json").read_text())["model_type"] == "gpt2"
