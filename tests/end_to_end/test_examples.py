"""Every example pipeline runs, on data and models that are small."""

import subprocess
import sys
from pathlib import Path

import pytest

from gpt2.registry.v1 import registry_service_pb2
from gpt2_orchestration.client import connect
from gpt2_orchestration.pipelines.settings import PipelineSettings, ask_services
from gpt2_orchestration.runners import run_pipeline
from gpt2_orchestration.specification import load_specification

EXAMPLES = sorted((Path(__file__).parents[2] / "orchestration" / "examples").glob("*.yaml"))
SMALL = {
    "encode_corpus.validation_fraction": 0.3,
    "train_model.config.steps": 4,
    "train_model.config.epochs": None,
    "train_model.config.batch_size": 2,
    "train_model.config.warmup_steps": 1,
    "train_model.config.sample_length": 8,
}

pytestmark = pytest.mark.usefixtures("service_environment")


@pytest.fixture(scope="module")
def texts(stack) -> Path:
    folder = stack.folder.parent / "examples"
    folder.mkdir()
    for number in range(20):
        (folder / f"{number}.txt").write_text(f"{number} bottles of beer on the wall, " * 40)
    articles = stack.mongodb["news"]["articles"]
    articles.drop()
    articles.insert_many(
        {
            "_id": f"article-{number:02d}",
            "title": f"Ausgabe {number}",
            "body": f"{number} Flaschen Bier an der Wand, " * 40,
        }
        for number in range(20)
    )
    yield folder
    articles.drop()


@pytest.fixture(scope="module")
def weights(web_folder) -> str:
    folder, address = web_folder
    (folder / "small").mkdir()
    writer = Path(__file__).with_name("openai_checkpoint.py")
    subprocess.run([sys.executable, writer, folder / "small"], check=True, capture_output=True, timeout=300)
    return f"{address}/small"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_ends_in_a_registered_model(example, stack, texts, weights, tmp_path):
    whole = load_specification(example)
    changes = {**SMALL, "register_model.model_name": f"example-{example.stem}"}
    if whole.import_files is not None:
        changes["import_files.uris"] = [texts.as_uri()]
    if whole.train_tokenizer is not None:
        changes["train_tokenizer.vocabulary_size"] = 300
    if whole.import_tokenizer is not None:
        changes["import_tokenizer.uri"] = weights
    if whole.import_checkpoint is not None:
        changes["import_checkpoint"] = {"uri": weights}
    else:
        changes["train_model.model_size"] = None
        changes["train_model.model"] = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_ctx": 16}
    specification = load_specification(example, changes)
    settings = PipelineSettings(root=tmp_path / "pipeline", metadata=tmp_path / "metadata.db")
    run_pipeline("local", specification, ask_services(specification, stack.client), settings)
    with connect("registry", stack.client) as registry:
        name = specification.register_model.model_name
        request = registry_service_pb2.GetModelVersionRequest(model_name=name, label="staging")
        assert registry.call("GetModelVersion", request).model_version.version == 1
