"""The whole pipeline on a small corpus, under both runners, with its cache; and that no byte is lost on the way."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_metadata import metadata_store
from ml_metadata.proto import metadata_store_pb2
from tokenizers import Tokenizer

from gpt2.registry.v1 import registry_service_pb2
from gpt2_orchestration.client.service_client import JobFailed, ServiceError, connect
from gpt2_orchestration.pipelines.settings import PipelineSettings, ask_services
from gpt2_orchestration.pipelines.specification import parse_specification

pytestmark = pytest.mark.usefixtures("service_environment")

WORDS = (Path(__file__).parents[2] / "LICENSE").read_text().split()[:60]


def sentences(seed: int, count: int) -> str:
    random = np.random.default_rng(seed)
    return " ".join(" ".join(random.choice(WORDS, 9)).capitalize() + "." for _ in range(count))


def specification(name: str, **changes):
    content = {
        "name": name,
        "export_corpus": {"source": {"database": "test", "collections": [name.replace("-", "_")]}},
        "train_tokenizer": {"vocabulary_size": 300},
        "encode_corpus": {"validation_fraction": 0.2},
        "train_model": {
            "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_ctx": 16},
            "config": {"steps": 20, "batch_size": 4, "learning_rate": 0.01, "sample_length": 8},
        },
        "register_model": {"model_name": name, "label": "staging"},
        **changes,
    }
    return parse_specification({key: value for key, value in content.items() if value is not None})


@pytest.fixture
def settings(tmp_path):
    return PipelineSettings(root=tmp_path / "pipeline", metadata=tmp_path / "metadata.db")


def fill(stack, name: str, count: int = 40) -> None:
    collection = stack.mongodb["test"][name.replace("-", "_")]
    collection.drop()
    collection.insert_many({"_id": f"document-{number:04d}", "text": sentences(number, 12)} for number in range(count))


def executions(settings) -> dict[str, list[str]]:
    """How each execution of each component ended, by the name of its component."""
    config = metadata_store_pb2.ConnectionConfig()
    config.sqlite.filename_uri = str(settings.metadata)
    store = metadata_store.MetadataStore(config)
    states: dict[str, list[str]] = {}
    for execution in store.get_executions():
        kind = execution.type.rpartition(".")[2]
        states.setdefault(kind, []).append(metadata_store_pb2.Execution.State.Name(execution.last_known_state))
    return states


def artifact_properties(settings, type_name: str) -> list[dict]:
    config = metadata_store_pb2.ConnectionConfig()
    config.sqlite.filename_uri = str(settings.metadata)
    artifacts = metadata_store.MetadataStore(config).get_artifacts_by_type(type_name)
    return [
        {name: getattr(value, value.WhichOneof("value")) for name, value in artifact.properties.items()}
        for artifact in artifacts
    ]


def versions(stack, name: str) -> list:
    with connect("registry", stack.client) as registry:
        request = registry_service_pb2.ListModelVersionsRequest(model_name=name)
        return list(registry.call("ListModelVersions", request).model_versions)


def run_pipeline(stack, settings, runner: str, specified) -> None:
    from gpt2_orchestration.runners import local  # loads TFX and TensorFlow

    local.run_pipeline(runner, specified, ask_services(specified, stack.client), settings)


STAGES = ("ExportCorpus", "TrainTokenizer", "EncodeCorpus", "TrainModel", "ExportModel", "RegisterModel")


@pytest.mark.parametrize("runner", [pytest.param("local", marks=pytest.mark.exhaustive), "beam"])
def test_a_pipeline_runs_is_cached_and_sees_new_documents(stack, settings, runner):
    name = f"from-scratch-{runner}"
    fill(stack, name)
    run_pipeline(stack, settings, runner, specification(name))
    assert executions(settings) == {stage: ["COMPLETE"] for stage in STAGES}
    [version] = versions(stack, name)
    assert list(version.labels) == ["staging"]
    assert version.metrics["validation_loss"] < version.metrics["initial_validation_loss"]
    [corpus] = artifact_properties(settings, "Gpt2Corpus")
    assert corpus["documents"] == 40
    assert corpus["artifact_uri"].startswith("file://")

    run_pipeline(stack, settings, runner, specification(name))
    assert executions(settings) == {stage: ["COMPLETE", "CACHED"] for stage in STAGES}
    assert len(versions(stack, name)) == 1

    stack.mongodb["test"][name.replace("-", "_")].insert_one({"_id": "document-1000", "text": sentences(1000, 12)})
    run_pipeline(stack, settings, runner, specification(name))
    assert executions(settings) == {stage: ["COMPLETE", "CACHED", "COMPLETE"] for stage in STAGES}
    assert [version.version for version in versions(stack, name)] == [2, 1]


@pytest.mark.exhaustive  # as two of the examples, whose trainings begin at other weights
def test_a_model_is_fine_tuned_from_the_weights_of_another(stack, settings):
    fill(stack, "base")
    run_pipeline(stack, settings, "local", specification("base"))
    [model] = artifact_properties(settings, "Gpt2Model")
    fill(stack, "fine-tuned", 30)
    fine_tune = specification(
        "fine-tuned",
        train_tokenizer=None,
        import_checkpoint={"uri": model["artifact_uri"]},
        train_model={"config": {"steps": 10, "batch_size": 4, "learning_rate": 0.001}},
    )
    run_pipeline(stack, settings, "local", fine_tune)
    [version] = versions(stack, "fine-tuned")
    [base] = versions(stack, "base")
    # It began where the other had ended, not at random weights.
    assert (
        version.metrics["initial_validation_loss"]
        < (base.metrics["validation_loss"] + base.metrics["initial_validation_loss"]) / 2
    )


@pytest.mark.exhaustive  # as the example `transplant-openai`, whose weights come from there too
def test_a_model_is_fine_tuned_from_weights_that_a_server_has_in_openai_s_format(stack, settings, web_folder):
    folder, address = web_folder
    (folder / "tiny").mkdir()
    writer = Path(__file__).with_name("openai_checkpoint.py")
    subprocess.run([sys.executable, writer, folder / "tiny"], check=True, capture_output=True, timeout=300)
    fill(stack, "from-openai", 30)
    fine_tune = specification(
        "from-openai",
        train_tokenizer=None,
        import_checkpoint={"uri": f"{address}/tiny"},
        train_model={"config": {"steps": 10, "batch_size": 4, "learning_rate": 0.01}},
    )
    run_pipeline(stack, settings, "local", fine_tune)
    [version] = versions(stack, "from-openai")
    assert version.metrics["validation_loss"] < version.metrics["initial_validation_loss"] < 6
    properties = artifact_properties(settings, "Gpt2Checkpoint")
    assert len({item["artifact_uri"] for item in properties}) == 2


@pytest.mark.parametrize("runner", ["local", "beam"])
def test_a_failed_stage_ends_the_pipeline_and_says_why(stack, settings, runner):
    stack.mongodb["test"]["no_text"].drop()
    stack.mongodb["test"]["no_text"].insert_one({"_id": 1, "body": "under another name"})
    with pytest.raises(Exception, match=r"source\.text_field") as error:
        run_pipeline(stack, settings, runner, specification("no-text"))
    assert runner == "beam" or isinstance(error.value, JobFailed)
    assert "TrainTokenizer" not in executions(settings)
    assert not versions_or_none(stack, "no-text")


def versions_or_none(stack, name: str) -> list:
    try:
        return versions(stack, name)
    except ServiceError:
        return []


HOSTILE = {
    "plain": "Nothing strange here.",
    "german": "Größe, Fuß und „Anführung“ – über Öl.",
    "newlines": "a\r\nb\rc\n\n\n  d\t\te",
    "end token": "before <|endoftext|> after",
    "emoji": "👩‍👩‍👧‍👦 🇩🇪 ❤️ \U0001f9ff",
    "right to left": "שלום עולם مرحبا بالعالم",
    "combining": "e\u0301 o\u0308 \u1100\u1161\u11a8",
    "spaces": "a\u00a0b\u2003c\u3000d\u200be\ufefff\u0085g",
    "byte order mark": "\ufeffstart",
    "nul": "a\0b",
    "one letter": "a" * 5000,
    "space alone": "   \n",
}


def test_documents_are_found_again_byte_for_byte_in_the_dataset(stack, settings):
    collection = stack.mongodb["test"]["bytes"]
    collection.drop()
    texts = HOSTILE | {f"s{n}": sentences(n, 12) for n in range(40)}
    collection.insert_many({"_id": name, "text": text} for name, text in texts.items())
    run_pipeline(stack, settings, "local", specification("bytes"))
    [dataset] = artifact_properties(settings, "Gpt2Dataset")
    assert dataset["documents"] == len(texts)
    folder = Path(dataset["artifact_uri"].removeprefix("file://"))
    facts = json.loads((folder / "dataset.json").read_text())
    decoder = byte_decoder(folder / "tokenizer" / "tokenizer.json")
    found = []
    for split in ("train", "validation"):
        stream = np.concatenate([np.load(path) for path in sorted(folder.glob(f"{split}-*.npy"))])
        ends = np.flatnonzero(stream == facts["end_token_id"])
        assert ends[-1] == len(stream) - 1, "the last document has no end token"
        begin = 0
        for end in ends:
            found.append(b"".join(decoder[token] for token in stream[begin:end].tolist()))
            begin = end + 1
    assert sorted(found) == sorted(text.encode() for text in texts.values())


def byte_decoder(tokenizer_json: Path) -> dict[int, bytes]:
    """The bytes of each token, worked out apart from the product's code: GPT-2's printable stand-ins for bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    vocabulary = Tokenizer.from_file(str(tokenizer_json)).get_vocab()
    return {
        token: bytes(byte_of[character] for character in text)
        for text, token in vocabulary.items()
        if text != "<|endoftext|>"
    }
