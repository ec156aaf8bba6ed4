"""Each contract by itself: old content is read, written again to the same bytes, and later versions are refused."""

import base64
import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from gpt2_contracts import corpus, events, metrics, model_version, openai, tokenizer, training
from gpt2_contracts.artifact import DamagedFile, UnsupportedVersion, job_folder_name, job_id_of_folder
from gpt2_contracts.dataset import DatasetDescription
from gpt2_contracts.evaluation import EvaluationReport
from gpt2_contracts.model import ModelDescription
from gpt2_contracts.training import TrainingResult

FILES = [("dataset", DatasetDescription), ("model", ModelDescription), ("evaluation", EvaluationReport)]


@pytest.mark.parametrize(("kind", "contract"), FILES)
def test_an_old_file_is_read_and_written_again_to_the_same_bytes(kind, contract, old_text):
    text = old_text(f"{kind}/{contract.FILE}")
    assert contract.from_text(text).to_text() == text


@pytest.mark.parametrize(("kind", "contract"), FILES)
def test_a_later_version_is_refused_with_what_to_do(kind, contract, old_text):
    content = {**json.loads(old_text(f"{kind}/{contract.FILE}")), "format_version": 2}
    with pytest.raises(UnsupportedVersion, match=rf"{contract.FILE} has format version 2.*update the service, or \w+"):
        contract.from_text(json.dumps(content))


@pytest.mark.parametrize(("kind", "contract"), FILES)
@pytest.mark.parametrize("text", ["", "[]", "null", '{"', '{"train": 1, "measurements": 1, "validations": 1}'])
def test_a_damaged_file_is_refused(kind, contract, text):
    with pytest.raises(DamagedFile):
        contract.from_text(text)


@pytest.mark.parametrize(("kind", "contract"), FILES)
def test_counts_and_properties_of_the_manifest_are_the_old_ones(kind, contract, old_artifact, old_text):
    description, manifest = contract.from_text(old_text(f"{kind}/{contract.FILE}")), old_artifact(kind).manifest
    assert list(description.to_counts().items()) == list(manifest.counts.items())
    assert list(description.to_properties().items()) == list(manifest.properties.items())


def test_counts_of_a_corpus(old_artifact):
    counts = old_artifact("corpus").manifest.counts
    assert corpus.CorpusCounts.from_counts(counts).to_counts() == counts


def test_properties_of_a_trained_checkpoint(old_artifact):
    properties = old_artifact("checkpoint").manifest.properties
    result = TrainingResult.from_properties(properties)
    assert (result.step, result.last_step, result.regressed) == (2, 4, True)
    assert (result.initial_validation_loss, result.validation_loss, result.last_validation_loss) == (5.5, 4.25, 6)
    assert len(result.warnings) == 2


def test_a_checkpoint_of_an_import_has_no_result(old_artifact):
    result = TrainingResult.from_properties({"n_layer": "1", "source": "file:///weights", "tokenizer_digest": "ab"})
    assert result == TrainingResult(tokenizer_digest="ab")


def test_lines_of_metrics(old_text):
    lines = old_text("logs/metrics.jsonl").splitlines(keepends=True)
    step, values = metrics.parse_line(lines[1])
    assert step == 2
    assert values["learning_rate"] == 0.001
    assert "gradient_norm" not in values
    assert json.loads(lines[1])["gradient_norm"] is None
    assert [metrics.format_line(*metrics.parse_line(lines[n])) for n in (0, 2)] == [lines[0], lines[2]]


def test_an_old_event_is_read_and_written_again_to_the_same_headers(old_records):
    headers = [(name, value.encode()) for name, value in old_records["headers"]]
    event = events.CloudEvent.from_record(headers, base64.b64decode(old_records["value"]))
    assert event.source == events.source_of("registry")
    assert event.time == datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert event.headers() == headers
    attributes = events.EventAttributes.from_headers(headers)
    assert (attributes.id, attributes.partitionkey, attributes.type) == (event.id, event.key, event.type)


def test_an_event_of_a_later_specification_is_refused(old_records):
    headers = [(name, b"2.0" if name == "ce_specversion" else value.encode()) for name, value in old_records["headers"]]
    with pytest.raises(events.InvalidEvent, match=r"version 2.0 is not 1.0: update"):
        events.CloudEvent.from_record(headers, b"")


def test_an_old_dead_letter_is_read_and_written_again_to_the_same_headers(old_records):
    headers = [(name, value.encode()) for name, value in old_records["dead_letter_headers"]]
    letter = events.DeadLetterHeaders.from_headers(headers)
    assert letter.consumer == "gpt2-trainer"
    assert [*events.original_headers(headers), *letter.headers()] == headers
    assert events.dead_letter_topic(events.DEFAULT_TOPIC) == old_records["dead_letter_topic"]


def test_the_output_of_a_registration_is_read_as_it_was_written():
    output = model_version.VersionOutput(
        model_name="news", version=3, model_uri="models:/news/3", run_url="http://mlflow", validation_loss=3.25
    )
    read = model_version.VersionOutput.from_artifact(output.to_counts(), output.to_properties())
    assert read == output
    assert model_version.VersionOutput.from_artifact({}, {}).version == 0


def test_folders_of_jobs_and_their_names():
    assert job_folder_name("run-1/train-model") == "run-1~train-model"
    assert job_id_of_folder(job_folder_name("run-1/train-model")) == "run-1/train-model"


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("corpus", [corpus.SUMMARY_FILE, corpus.REJECTS_FILE, corpus.shard_name(0)]),
        ("tokenizer", [*tokenizer.FILES, tokenizer.CONFIG_FILE]),
        ("samples", [training.samples_name(2)]),
        ("logs", [training.METRICS_FILE]),
    ],
)
def test_names_of_files_are_those_of_old_artifacts(kind, names, old_artifact):
    assert {entry.path for entry in old_artifact(kind).manifest.files} == set(names)


def test_openai_s_files_are_all_of_known_names():
    assert {name.rpartition("/")[2] for name in (*openai.SHA256, *openai.SIZES)} <= set(openai.FILES)
    assert set(openai.NEEDED_FILES) < set(openai.FILES)


@pytest.mark.process
def test_the_contracts_import_the_standard_library_alone():
    code = (
        "import importlib, pkgutil, sys, gpt2_contracts\n"
        "before = set(sys.modules)\n"
        "for module in pkgutil.iter_modules(gpt2_contracts.__path__):\n"
        "    importlib.import_module(f'gpt2_contracts.{module.name}')\n"
        "print([m for m in set(sys.modules) - before if m.partition('.')[0] not in sys.stdlib_module_names])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert {name.partition(".")[0] for name in json.loads(loaded.replace("'", '"'))} == {"gpt2_contracts"}
