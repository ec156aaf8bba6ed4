"""The services' own readers take what version 0.1.0 wrote, and their writers still write the same bytes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gpt2_common.artifacts import Artifact, ArtifactStore, Manifest
from gpt2_common.errors import DataLoss, FailedPrecondition
from gpt2_common.events import dead_letters
from gpt2_common.vocabulary.byte_symbols import byte_of_symbol
from gpt2_common.vocabulary.files import commit_vocabulary, read_vocabulary
from gpt2_contracts import corpus
from gpt2_contracts.dataset import DatasetDescription
from gpt2_contracts.evaluation import EvaluationReport
from gpt2_contracts.model import ModelDescription
from gpt2_exporter.corpus.shards import SCHEMA
from gpt2_registry.evaluations import Evaluation, evaluations
from gpt2_registry.labels import label_tag
from gpt2_registry.mlflow_registry import RegisteredVersion
from gpt2_registry.model_metadata import ModelMetadata, read_metrics, read_model
from gpt2_tokenizer.corpus.reading import read_batches
from gpt2_trainer.formats.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from gpt2_trainer.formats.huggingface import CONFIG
from gpt2_trainer.formats.tokenizer_files import tokenizer_size
from gpt2_trainer.generation.text import TextCodec
from gpt2_trainer.jobs.export import _commit
from gpt2_trainer.jobs.training_outputs import checkpoint_properties
from gpt2_trainer.training.data import TokenStream
from gpt2_trainer.training.metrics_log import MetricsLog
from gpt2_trainer.training.summary import summarize_training


@pytest.fixture
def make_writer(tmp_path):
    """A writer of an artifact with the producer and the parents of an old one."""

    def make(old: Artifact):
        store = ArtifactStore(tmp_path.as_uri(), [tmp_path.as_uri()], tmp_path)
        with store.create("new", "output", old.manifest.kind, old.manifest.producer) as writer:
            writer._parents = old.manifest.parents
            return writer

    return make


def files_of(artifact: Artifact) -> dict[str, bytes]:
    names = [entry.path for entry in artifact.manifest.files]
    return {name: (artifact.folder / name).read_bytes() for name in [*names, "manifest.json"]}


def test_a_corpus_is_read(old_artifact):
    assert [text for batch in read_batches(old_artifact("corpus")) for text in batch.texts] == [
        "Grüße",
        "hello hello hello",
        "hell o",
    ]
    shard = old_artifact("corpus").folder / corpus.shard_name(0)
    assert pa.parquet.read_schema(shard).remove_metadata() == SCHEMA


def test_a_tokenizer_is_read_and_written_again_to_the_same_bytes(old_artifact, make_writer):
    old = old_artifact("tokenizer")
    vocabulary = read_vocabulary(old)
    assert vocabulary.fingerprint == old.manifest.properties["fingerprint"]
    new = commit_vocabulary(make_writer(old), vocabulary, old.manifest.properties["source"])
    assert files_of(new) == files_of(old)
    assert tokenizer_size(old.folder, "tokenizer_uri") == (vocabulary.size, vocabulary.end_token_id)
    codec = TextCodec(old.folder, vocabulary.end_token_id)
    assert codec.decode(codec.encode_prompt("Grüße, hello")) == "Grüße, hello"


def test_a_dataset_is_read(old_artifact):
    old = old_artifact("dataset")
    described = old.read(DatasetDescription)
    for split, size in (("train", described.train), ("validation", described.validation)):
        assert len(TokenStream(old.folder, split)) == size.tokens
    assert TokenStream(old.folder, "train").read(0, 4).tolist() == [1, 2, 3, 258]


def test_a_checkpoint_is_read_and_its_weights_and_properties_are_written_again_to_the_same_bytes(
    old_artifact, make_writer
):
    old = old_artifact("checkpoint")
    checkpoint = read_checkpoint(old.folder, with_optimizer=True)
    writer = make_writer(old)
    write_checkpoint(writer.folder, checkpoint, None)
    validations = [*checkpoint.state.validations, replace(checkpoint.state.validations[0], step=4, loss=6.0)]
    end = replace(checkpoint.state, step=4, validations=validations, stopped_because="steps", skipped_steps=1)
    properties = checkpoint_properties(checkpoint.architecture, end, summarize_training(end, 0))
    new = writer.commit(old.manifest.counts, properties | {"keras_backend": "jax"})
    assert new.manifest.properties == old.manifest.properties
    # `state.json` has other names today; those of the old one are read.
    for name in ("config.json", "weights.safetensors"):
        assert files_of(new)[name] == files_of(old)[name]
    assert read_checkpoint(new.folder, with_optimizer=False).state == checkpoint.state


def test_metrics_are_read_and_written_again_to_the_same_bytes(old_artifact, old_registry, tmp_path):
    old = old_artifact("logs")
    assert [[point.name, point.value, point.step] for point in read_metrics(old)] == old_registry["points"]
    log = MetricsLog(tmp_path, 0)
    lines = (old.folder / "metrics.jsonl").read_text()
    for line in lines.splitlines():
        content = {name: np.inf if value is None else value for name, value in json.loads(line).items()}
        log.log_metrics(content.pop("step"), content)
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == lines


def test_a_model_is_read_by_the_registry_as_before(old_artifact, old_registry):
    model = read_model(old_artifact("model"))
    assert {**model.tags(), "gpt2.model_artifact": ""} == {**old_registry["model_tags"], "gpt2.model_artifact": ""}
    assert list(model.parameters().items()) == list(old_registry["parameters"].items())
    assert model.summary() == old_registry["summary"]


def test_an_exported_model_is_written_to_the_same_bytes(old_artifact, make_writer):
    old, source = old_artifact("model"), old_artifact("checkpoint")
    read = read_checkpoint(source.folder, with_optimizer=False)
    checkpoint = Checkpoint(architecture=read.architecture, weights={}, slots={}, state=read.state)
    writer = make_writer(old)
    for name in ("saved_model/saved_model.pb", CONFIG, "tokenizer.json"):
        (writer.folder / name).parent.mkdir(exist_ok=True)
        (writer.folder / name).write_bytes((old.folder / name).read_bytes())
    assert files_of(_commit(writer, source, checkpoint, ["Grüße", "zwei"])) == files_of(old)


def test_tags_of_evaluations_are_read_and_written_again_to_the_same_text(old_registry):
    tags = old_registry["evaluation_tags"]
    version = RegisteredVersion(
        model_name="m", version=1, labels=[], run_id="", tags=tags, metrics={}, created_millis=0
    )
    found = evaluations(version)
    assert dict(evaluation.to_tag() for evaluation in found) == tags
    assert Evaluation.from_tag("{") is None


def test_names_of_label_tags_are_the_old_ones(old_registry):
    assert {label: label_tag(label) for label in old_registry["label_tags"]} == old_registry["label_tags"]


def test_a_dead_letter_is_written_with_the_same_headers(old_records, monkeypatch):
    sent = {}

    class Producer:
        def send(self, topic, key, value, headers):
            sent.update(topic=topic, headers=[[name, content.decode()] for name, content in headers])
            return self

        def get(self, timeout):
            pass

    class Record:
        headers = [(name, content.encode()) for name, content in old_records["headers"]]  # noqa: RUF012
        topic, partition, offset, key, value = "gpt2.stage-events.v1", 3, 7, b"news", b""

    letters = dead_letters.DeadLetters("broker", Record.topic, "gpt2-trainer")
    letters._producer = Producer()
    letters.add(Record, ValueError("a surrogate \udc80"), "Traceback\n")
    written = [header for header in sent["headers"] if header[0] != "dlq_time"]
    assert written == [header for header in old_records["dead_letter_headers"] if header[0] != "dlq_time"]
    assert sent["topic"] == old_records["dead_letter_topic"]


@pytest.mark.parametrize(
    ("kind", "contract"),
    [("dataset", DatasetDescription), ("model", ModelDescription), ("evaluation", EvaluationReport)],
)
def test_readers_refuse_damaged_and_later_files(kind, contract, old_artifact, tmp_path):
    artifact = Artifact("file:///new", Manifest(kind=kind, files=()), tmp_path)
    with pytest.raises(DataLoss, match=rf"{contract.FILE} cannot be read .*again"):
        artifact.read(contract)
    (tmp_path / contract.FILE).write_text("{")
    with pytest.raises(DataLoss, match=rf"{contract.FILE} is damaged .*again"):
        artifact.read(contract)
    content = json.loads((old_artifact(kind).folder / contract.FILE).read_text())
    (tmp_path / contract.FILE).write_text(json.dumps({**content, "format_version": 2}))
    with pytest.raises(FailedPrecondition, match=rf"{contract.FILE} has format version 2.*update the service"):
        artifact.read(contract)


@pytest.mark.process
def test_the_served_model_has_the_same_alphabet():
    """It stands alone, so that it has a copy."""
    served = Path(read_model.__code__.co_filename).with_name("serving_model.py")
    code = f"import runpy, json; print(json.dumps(runpy.run_path({str(served)!r})['_byte_of_character']()))"
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert json.loads(done.stdout.splitlines()[-1]) == dict(byte_of_symbol())


def test_a_model_of_another_tool_has_an_empty_description(old_artifact, tmp_path):
    old = old_artifact("model")
    model = ModelMetadata(Artifact(old.uri, old.manifest, tmp_path), ModelDescription())
    assert model.summary() == "GPT-2."
    assert list(model.validation_metrics()) == []
