"""The report of a model: what is in it, that nothing in it acts, and that long trainings fit."""

import json
import math
from html.parser import HTMLParser

import pytest

from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2_common.artifacts import ArtifactStore
from gpt2_registry.curves import Curves
from gpt2_registry.jobs import register_model
from gpt2_registry.model_metadata import MetricPoint

from .conftest import END_TOKEN, PROVENANCE, write_tokenizer

HOSTILE = '</pre><script>alert("1")</script><img src=x onerror=alert(2)> \u202e‮ " \' & <!-- '


class Page(HTMLParser):
    """Elements, attributes and texts of a page, as a browser would read them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def report(mlflow_uri, artifacts, make_context, tmp_path):
    """Registers a model and gives the folder with its run's files."""

    def make(model_name: str, job_id: str, **fields):
        from mlflow import MlflowClient  # heavy, and the unit tests here do without

        client = MlflowClient(mlflow_uri, mlflow_uri)
        register_model(pb.RegisterModelRequest(model_name=model_name, **fields), make_context(job_id))
        [version] = client.search_model_versions(f"name = '{model_name}'")
        files = {item.path for item in client.list_artifacts(version.run_id)}
        folder = tmp_path / job_id
        folder.mkdir()
        for name in files:
            client.download_artifacts(version.run_id, name, str(folder))
        return folder

    return make


def test_report_shows_metrics_curves_samples_and_parameters(report, artifacts):
    logs = artifacts.logs(
        [
            {"step": step, "loss": 9.0 - step / 100, "learning_rate": 1e-3, "gradient_norm": 1.0}
            for step in range(1, 300)
        ]
        + [{"step": 300, "validation_loss": 3.25}]
    )
    end = {
        "last_step": 300,
        "last_validation_loss": 22.9,
        "regressed": True,
        "warnings": "it <ended> worse\nand so on",
    }
    folder = report("report-whole", "whole", model_uri=artifacts.model({**PROVENANCE, **end}), logs_uri=logs)
    text = (folder / "report.html").read_text()
    page = Page(text)
    shown = " ".join(page.texts)
    assert "3.2500" in shown
    assert f"{math.exp(3.25):.2f}" in shown
    assert "validation loss before training" in shown
    assert "22.9000 validation loss at the end of the training" in " ".join(shown.split())
    assert "it <ended> worse" in shown
    assert "and so on" in shown
    assert "Grüße" in shown
    assert "train.learning_rate" in shown
    assert page.tags.count("svg") == 1
    for words in ("Loss", "nats per token", "Learning rate", "Gradient norm", "step"):
        assert words in shown
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "Grüße" in (folder / "samples.txt").read_text()


def test_report_needs_no_other_file_and_runs_nothing(report, artifacts):
    provenance = {**PROVENANCE, "samples": [HOSTILE], "train_config": {"optimizer": HOSTILE}}
    folder = report("report-hostile", "hostile", model_uri=artifacts.model(provenance=provenance))
    page = Page((folder / "report.html").read_text())
    assert not {"script", "img", "iframe", "link", "object"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    addresses = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert all(value.startswith("#") for value in addresses)
    assert page.texts.count(HOSTILE) == 2
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_lineage_goes_back_to_what_is_still_there(report, artifacts, tmp_path):
    store = ArtifactStore(artifacts.root.as_uri(), [artifacts.root.as_uri()], tmp_path / "scratch")
    producer = {"job_id": "made", "git_revision": "abc123", "python": "3.11.9"}

    def make(kind, parents, files, **facts):
        with store.create(f"lineage-{kind}", kind, kind, producer, parents) as writer:
            for name, content in files.items():
                path = writer.folder / name
                path.parent.mkdir(exist_ok=True)
                path.write_text(content)
            return writer.commit(**facts)

    corpus = make("corpus", [], {"a": "text"}, counts={"documents": 12}, properties={"database": "news"})
    tokenizer = make("tokenizer", [corpus], {"b": "tokens"})
    dataset = make("dataset", [corpus, tokenizer], {"c": "ids"}, counts={"tokens": 1234})
    write_tokenizer(tmp_path / "tokenizer.json")
    files = {
        "config.json": json.dumps({"eos_token_id": END_TOKEN}),
        "tokenizer.json": (tmp_path / "tokenizer.json").read_text(),
        "saved_model/saved_model.pb": "graph",
    }
    model = make("model", [dataset], files)
    (artifacts.root / "lineage-tokenizer" / "tokenizer" / "manifest.json").unlink()

    folder = report("report-lineage", "lineage", model_uri=model.uri)
    nodes = {item["kind"]: item for item in json.loads((folder / "lineage.json").read_text())}
    assert set(nodes) == {"model", "dataset", "corpus", "tokenizer"}
    assert nodes["model"]["parents"] == [dataset.digest]
    assert nodes["dataset"]["counts"] == {"tokens": 1234}
    assert nodes["corpus"]["properties"] == {"database": "news"}
    assert nodes["corpus"]["producer"]["git_revision"] == "abc123"
    assert nodes["tokenizer"] == {
        "kind": "tokenizer",
        "uri": tokenizer.uri,
        "digest": tokenizer.digest,
        "counts": {},
        "properties": {},
        "producer": {},
        "parents": [],
    }
    shown = " ".join(Page((folder / "report.html").read_text()).texts)
    assert "12 documents" in shown
    assert "git_revision abc123" in shown


def test_model_that_says_nothing_has_a_report_without_pictures(report, artifacts):
    folder = report("report-bare", "bare-report", model_uri=artifacts.model(provenance=None))
    assert {path.name for path in folder.iterdir()} >= {"report.html", "lineage.json"}
    assert not (folder / "curves.png").exists()
    assert "svg" not in Page((folder / "report.html").read_text()).tags


def test_long_curves_are_thinned_and_keep_both_ends():
    curves = Curves()
    points = (MetricPoint("loss", 1 / step, step) for step in range(1, 100_001))
    assert sum(1 for _ in curves.collect(points)) == 100_000
    kept = curves.points("loss")
    assert 2_000 <= len(kept) <= 4_001
    assert (kept[0].step, kept[-1].step) == (1, 100_000)
    assert [point.step for point in kept] == sorted({point.step for point in kept})


def test_the_same_curves_give_the_same_pictures():
    def drawn():
        curves = Curves()
        assert list(curves.collect(MetricPoint("loss", 1 / step, step) for step in range(1, 50)))
        return curves.plots()

    assert drawn() == drawn()
