import pytest

from gpt2_orchestration.demo.demo import SPECIFICATION
from gpt2_orchestration.specification import (
    SpecificationError,
    load_specification,
    override,
    parse_overrides,
    parse_specification,
)

SCRATCH = {
    "name": "news",
    "export_corpus": {"source": {"database": "news", "collections": ["articles"]}},
    "train_tokenizer": {"vocabulary_size": 8192},
    "train_model": {"model_size": "124M", "config": {"steps": 10}},
    "register_model": {"model_name": "news"},
}
FINE_TUNE = {
    "name": "news",
    "import_files": {"uris": ["file:///data/text"]},
    "import_checkpoint": {"openai_model": "124M"},
    "train_model": {"config": {"steps": 10}},
    "register_model": {"model_name": "news"},
}


def changed(content: dict, **changes) -> dict:
    return {name: value for name, value in {**content, **changes}.items() if value is not None}


def test_sections_become_requests():
    specification = parse_specification(SCRATCH)
    assert specification.export_corpus.source.database == "news"
    assert specification.train_model.config.steps == 10
    assert parse_specification(FINE_TUNE).import_checkpoint.openai_model == "124M"


def test_the_demonstration_has_a_valid_one():
    assert load_specification(SPECIFICATION).register_model.label == "staging"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "a mapping of sections"),
        ([], "a mapping of sections"),
        (changed(SCRATCH, name=None), "section 'name' is missing"),
        (changed(SCRATCH, name="Älteste News"), "name: must be"),
        (changed(SCRATCH, register_model=None), "section 'register_model' is missing"),
        (changed(SCRATCH, trian_model={}), "unknown section 'trian_model'"),
        (changed(SCRATCH, export_corpus=None), "one of export_corpus and import_files"),
        (changed(SCRATCH, import_files={"uris": ["/x"]}), "one of export_corpus and import_files"),
        (changed(SCRATCH, train_tokenizer=None), "train_tokenizer or import_tokenizer is needed"),
        (changed(SCRATCH, import_tokenizer={"uri": "/x"}), "exclude each other"),
        (changed(SCRATCH, train_model={"config": {"steps": 1}}), "`model` or `model_size` is needed"),
        (
            changed(SCRATCH, train_model={"model_size": "124M", "config": {"stepz": 1}}),
            "train_model.config.stepz is no field; steps is",
        ),
        (changed(SCRATCH, train_tokenizer={"vocabulary_size": "many"}), "train_tokenizer: .*vocabularySize|vocabulary"),
        (changed(SCRATCH, export_corpus=["a"]), "export_corpus: "),
        (changed(SCRATCH, export_corpus={"job": {"job_id": "x"}}), "export_corpus.job: job ids are given"),
        (changed(FINE_TUNE, train_tokenizer={}), "does not go with import_checkpoint"),
        (changed(FINE_TUNE, train_model={"model_size": "124M"}), "comes from import_checkpoint"),
    ],
)
def test_a_wrong_specification_is_refused_naming_the_section(content, words):
    with pytest.raises(SpecificationError, match=words):
        parse_specification(content)


def test_a_file_that_is_no_yaml_or_not_there_is_named(tmp_path):
    path = tmp_path / "news.yaml"
    with pytest.raises(SpecificationError, match=r"news\.yaml cannot be read"):
        load_specification(path)
    path.write_text("name: [")
    with pytest.raises(SpecificationError, match=r"news\.yaml cannot be read"):
        load_specification(path)


def test_overrides_replace_add_and_remove_and_leave_the_content_alone():
    overrides = parse_overrides(["train_model.config.steps=20", "encode_corpus.validation_fraction=0.5", "name=other"])
    changed_content = override(SCRATCH, {**overrides, "train_tokenizer": None, "import_tokenizer.uri": "/x"})
    specification = parse_specification(changed_content)
    assert specification.name == "other"
    assert specification.train_model.config.steps == 20
    assert specification.train_model.model_size == "124M"
    assert specification.encode_corpus.validation_fraction == 0.5
    assert specification.train_tokenizer is None
    assert parse_specification(SCRATCH).train_model.config.steps == 10


@pytest.mark.parametrize(
    ("assignment", "words"),
    [("steps", "no PATH=VALUE"), ("=3", "no PATH=VALUE"), ("name=[", "name: the value is no YAML")],
)
def test_an_assignment_that_is_none_is_refused(assignment, words):
    with pytest.raises(SpecificationError, match=words):
        parse_overrides([assignment])


@pytest.mark.parametrize("path", ["name.part", "train_model.config.steps.more"])
def test_an_override_through_a_value_is_refused(path):
    with pytest.raises(SpecificationError, match=f"{path} cannot be set"):
        override(SCRATCH, {path: 1})
