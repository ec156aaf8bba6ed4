"""Every example pipeline runs, on data and models that are small; and a table says what each of them is.

`fine-tune-lora`, `fine-tune-openai` and `transplant-openai` differ from the others in where OpenAI's weights come from
here: a web server.
"""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2.registry.v1 import registry_service_pb2
from gpt2.trainer.v1 import trainer_service_pb2
from gpt2_orchestration.client.service_client import connect
from gpt2_orchestration.pipelines.settings import PipelineSettings, ask_services
from gpt2_orchestration.pipelines.specification import load_specification, parse_specification

EXAMPLES = sorted((Path(__file__).parents[2] / "orchestration" / "examples").glob("*.yaml"))
SCRATCH, OPENAI, HUGGING_FACE, OWN = "scratch", "OpenAI's weights", "Hugging Face's layout", "own checkpoint"
TABLE = {
    # example: source, start, tokenizer, gate
    "fine-tune-checkpoint": ("files", OWN, "its own", "threshold"),
    "fine-tune-huggingface": ("MongoDB", HUGGING_FACE, "its own", "better"),
    "fine-tune-lora": ("files", OPENAI, "its own", "always"),
    "fine-tune-openai": ("MongoDB", OPENAI, "its own", "always"),
    "scratch-files": ("files", SCRATCH, "trained", "always"),
    "scratch-mongodb": ("MongoDB", SCRATCH, "trained", "always"),
    "scratch-mongodb-openai-tokenizer": ("MongoDB", SCRATCH, "OpenAI's", "threshold and better"),
    "scratch-openai-tokenizer": ("files", SCRATCH, "OpenAI's", "always"),
    "transplant-openai": ("MongoDB", OPENAI, "trained", "always"),
}
REPRESENTATIVES = (
    "fine-tune-checkpoint",
    "fine-tune-huggingface",
    "scratch-mongodb-openai-tokenizer",
    "transplant-openai",
)
"""Not exhaustive: each source, start, tokenizer and gate that any example has, one of these has."""
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


@pytest.fixture(scope="module")
def own(stack, weights) -> dict[str, str]:
    """An own checkpoint and a model in Hugging Face's layout, made of the small weights."""
    with connect("trainer", stack.client) as trainer:
        imported = trainer.start("ImportCheckpoint", trainer_service_pb2.ImportCheckpointRequest(uri=weights))
        made = {output.name: output.uri for output in trainer.follow(imported, lambda _: None).outputs}
        request = trainer_service_pb2.ExportModelRequest(checkpoint_uri=made["checkpoint"])
        exported = trainer.follow(trainer.start("ExportModel", request), lambda _: None)
    return {OWN: made["checkpoint"], HUGGING_FACE: exported.outputs[0].uri, OPENAI: weights}


def what_is(specification) -> tuple[str, str, str, str]:
    """Source, start, tokenizer and gate of a specification, as the table has them."""
    requests = specification.requests
    source = "MongoDB" if "export_corpus" in requests else "files"
    start, tokenizer = SCRATCH, "OpenAI's" if "import_tokenizer" in requests else "trained"
    if (imported := requests.get("import_checkpoint")) is not None:
        tokenizer = tokenizer if imported.transplant else "its own"
        start = OPENAI if imported.openai_model else OWN if imported.uri.endswith("/checkpoint") else HUGGING_FACE
    gate = requests["register_model"].label_gate
    forms = ["threshold"] * gate.HasField("max_validation_loss") + ["better"] * gate.must_improve
    return source, start, tokenizer, " and ".join(forms) or "always"


def test_the_table_says_what_the_examples_are_and_they_cover_what_there_is():
    found = {example.stem: what_is(load_specification(example)) for example in EXAMPLES}
    assert found == TABLE
    tokenizers = [(source, start, tokenizer) for source, start, tokenizer, _ in TABLE.values()]
    assert {*itertools.product(("files", "MongoDB"), [SCRATCH], ("trained", "OpenAI's"))} <= {*tokenizers}
    assert any(start != SCRATCH and tokenizer == "trained" for _, start, tokenizer in tokenizers)
    assert {start for _, start, _, _ in TABLE.values()} == {SCRATCH, OPENAI, HUGGING_FACE, OWN}
    assert {gate for *_, gate in TABLE.values()} == {"always", "threshold", "better", "threshold and better"}
    represented = zip(*(TABLE[example] for example in REPRESENTATIVES), strict=True)
    assert [{*column} for column in represented] == [{*column} for column in zip(*TABLE.values(), strict=True)]


@pytest.mark.parametrize("source", ["files", "MongoDB"])
@pytest.mark.parametrize("start", [OPENAI, HUGGING_FACE, OWN])
def test_any_source_goes_with_any_start(source, start):
    """The two meet in no stage but training: that each pair is a pipeline is enough, where each is run in another."""
    sources = {
        "files": {"import_files": {"uris": ["/data/texts"]}},
        "MongoDB": {"export_corpus": {"source": {"database": "news", "collections": ["articles"]}}},
    }
    uris = {HUGGING_FACE: "/data/models/gpt2", OWN: "/data/artifacts/news~train/checkpoint"}
    checkpoint = {"openai_model": "124M"} if start == OPENAI else {"uri": uris[start]}
    rest = {"name": "pair", "train_model": {"config": {"steps": 1}}, "register_model": {"model_name": "pair"}}
    specification = parse_specification({**sources[source], "import_checkpoint": checkpoint, **rest})
    assert what_is(specification)[:3] == (source, start, "its own")
    stages = {stage.name for stage in specification.stages()}
    assert stages > {"ImportCheckpoint", "EncodeCorpus", "TrainModel", "ExportModel", "RegisterModel"}


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(example, marks=() if example.stem in REPRESENTATIVES else pytest.mark.exhaustive)
        for example in EXAMPLES
    ],
    ids=lambda path: path.stem,
)
def test_an_example_ends_in_a_registered_model(example, stack, texts, weights, own, tmp_path):
    from gpt2_orchestration.runners.local import run_pipeline  # loads TFX and TensorFlow

    whole = load_specification(example)
    changes = {**SMALL, "register_model.model_name": f"example-{example.stem}"}
    if "import_files" in whole.requests:
        changes["import_files.uris"] = [texts.as_uri()]
    if "train_tokenizer" in whole.requests:
        changes["train_tokenizer.vocabulary_size"] = 300
    if whole.requests["train_model"].config.embeddings_only_steps:
        changes["train_model.config.embeddings_only_steps"] = 2
    if "import_tokenizer" in whole.requests:
        changes["import_tokenizer.uri"] = weights
    if "import_checkpoint" in whole.requests:
        source = {"uri": own[what_is(whole)[1]]}
        transplant = {"transplant": True} if whole.requests["import_checkpoint"].transplant else {}
        changes["import_checkpoint"] = source | transplant
    else:
        changes["train_model.model_size"] = None
        changes["train_model.model"] = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_ctx": 16}
    if whole.requests["register_model"].label_gate.HasField("max_validation_loss"):
        changes["register_model.label_gate.max_validation_loss"] = 100
    specification = load_specification(example, changes)
    settings = PipelineSettings(root=tmp_path / "pipeline", metadata=tmp_path / "metadata.db")
    run_pipeline("local", specification, ask_services(specification, stack.client), settings)
    with connect("registry", stack.client) as registry:
        name = specification.requests["register_model"].model_name
        request = registry_service_pb2.GetModelVersionRequest(model_name=name, label="staging")
        assert registry.call("GetModelVersion", request).model_version.version == 1
