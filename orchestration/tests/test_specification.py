import random

import pytest

from gpt2_orchestration.client.field_errors import join_path
from gpt2_orchestration.demo.demo import SPECIFICATION
from gpt2_orchestration.pipelines.specification import (
    SpecificationError,
    load_specification,
    override,
    parse_overrides,
    parse_specification,
)
from gpt2_orchestration.pipelines.strict_yaml import YamlError, read_yaml

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
TRANSPLANT = {"openai_model": "124M", "transplant": True}


def changed(content: dict, **changes) -> dict:
    return {name: value for name, value in {**content, **changes}.items() if value is not None}


def test_sections_become_requests():
    specification = parse_specification(SCRATCH)
    assert specification.requests["export_corpus"].source.database == "news"
    assert specification.requests["train_model"].config.steps == 10
    assert parse_specification(FINE_TUNE).requests["import_checkpoint"].openai_model == "124M"


def test_the_demonstration_has_a_valid_one():
    assert load_specification(SPECIFICATION).requests["register_model"].label == "staging"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "must be a mapping of sections"),
        ([], "must be a mapping of sections"),
        (changed(SCRATCH, name=None), "name: this section is missing"),
        (changed(SCRATCH, name="Älteste News"), "name: must be"),
        (changed(SCRATCH, register_model=None), "register_model: this section is missing"),
        (changed(SCRATCH, trian_model={}), "trian_model: unknown section; did you mean train_model"),
        (changed(SCRATCH, export_corpus=None), "one of the sections export_corpus and import_files is needed"),
        (changed(SCRATCH, import_files={"uris": ["/x"]}), "export_corpus and import_files exclude each other"),
        (changed(SCRATCH, train_tokenizer=None), "needs train_tokenizer or import_tokenizer"),
        (changed(SCRATCH, import_tokenizer={"uri": "/x"}), "exclude each other"),
        (changed(SCRATCH, train_model={"config": {"steps": 1}}), "needs `model` or `model_size`"),
        (
            changed(SCRATCH, train_model={"model_size": "124M", "config": {"stepz": 1}}),
            r"train_model\.config\.stepz: unknown field; did you mean steps",
        ),
        (
            changed(SCRATCH, train_tokenizer={"vocabulary_size": "many"}),
            r"train_tokenizer\.vocabulary_size: must be a whole number of 32 bits, not 'many'",
        ),
        (changed(SCRATCH, export_corpus=["a"]), "export_corpus: "),
        (changed(SCRATCH, export_corpus={"job": {"job_id": "x"}}), "export_corpus.job: the pipeline sets job ids"),
        (changed(FINE_TUNE, train_tokenizer={}), "comes with import_checkpoint"),
        (changed(FINE_TUNE, train_tokenizer={}), r"or set import_checkpoint\.transplant"),
        (changed(FINE_TUNE, import_checkpoint=TRANSPLANT), r"import_checkpoint\.transplant: needs train_tokenizer or"),
        (
            changed(FINE_TUNE, train_tokenizer={}, import_checkpoint={"target_tokenizer_uri": "/t", **TRANSPLANT}),
            "target_tokenizer_uri: comes from another stage of the pipeline; set transplant in its place",
        ),
        (changed(FINE_TUNE, train_model={"model_size": "124M"}), "comes from import_checkpoint"),
    ],
)
def test_a_wrong_specification_is_refused_naming_the_section(content, words):
    with pytest.raises(SpecificationError, match=words):
        parse_specification(content)


def edges(content) -> dict[str, dict[str, str]]:
    """The stage that gives each input, by stage."""
    stages = parse_specification(content).stages()
    return {stage.name: {name: source.stage for name, source in stage.inputs.items()} for stage in stages}


@pytest.mark.parametrize(
    "tokenizer",
    [{"train_tokenizer": {}}, {"import_tokenizer": {"uri": "/t"}}],
    ids=lambda sections: next(iter(sections)),
)
def test_a_transplant_waits_for_the_tokenizer_that_the_dataset_has(tokenizer):
    maker = "TrainTokenizer" if "train_tokenizer" in tokenizer else "ImportTokenizer"
    found = edges(changed(FINE_TUNE, import_checkpoint=TRANSPLANT, **tokenizer))
    assert found["ImportCheckpoint"] == {"tokenizer": maker}
    assert found["EncodeCorpus"] == {"corpus": "ImportFiles", "tokenizer": maker}
    assert found["TrainModel"] == {"dataset": "EncodeCorpus", "checkpoint": "ImportCheckpoint"}
    assert [*found].index(maker) < [*found].index("ImportCheckpoint")


def test_a_tokenizer_beside_imported_weights_is_no_transplant_unless_the_file_says_so():
    found = edges(changed(FINE_TUNE, import_tokenizer={"uri": "/t"}))
    assert found["ImportCheckpoint"] == {}
    assert found["EncodeCorpus"]["tokenizer"] == "ImportTokenizer"
    found = edges(FINE_TUNE)
    assert found["EncodeCorpus"]["tokenizer"] == "ImportCheckpoint"


def test_all_violations_of_all_sections_are_in_one_error():
    content = {
        "nmae": "news",
        "name": "Älteste",
        "import_files": {"uris": "file:///data", "job": {"job_id": "x"}},
        "encode_corpus": {"engine": "ENGINE_SPARK", "corpus_uri": "file:///corpus"},
        "train_model": {
            "model": {"n_layer": 1.5, "heads": 3},
            "model_size": "124M",
            "config": {"stepz": 7, "learning_rate": True, "lora": 8, "seed": 2**64, "noise": 2},
        },
        "register_model": {"label": False, "tags": {"a": 1, "b": "c"}, "reason": "x" * 1001},
    }
    with pytest.raises(SpecificationError) as error:
        parse_specification(content)
    assert sorted(item.path for item in error.value.errors) == [
        "encode_corpus.corpus_uri",
        "encode_corpus.engine",
        "import_files.job",
        "import_files.uris",
        "name",
        "nmae",
        "register_model.label",
        "register_model.model_name",
        "register_model.reason",
        "register_model.tags.a",
        "train_model.config.learning_rate",
        "train_model.config.lora",
        "train_model.config.noise",
        "train_model.config.seed",
        "train_model.config.stepz",
        "train_model.model.heads",
        "train_model.model.n_ctx",
        "train_model.model.n_embd",
        "train_model.model.n_head",
        "train_model.model.n_layer",
        "train_model.model_size",
        "train_tokenizer",
    ]
    first, *lines = str(error.value).splitlines()
    assert first == "22 errors"
    assert "  train_model.config.noise: must be 0 to 1, not 2.0" in lines
    assert "  register_model.label: must be a text, not false; put it in quotes" in lines
    assert "  train_model.config.stepz: unknown field; did you mean steps?" in lines
    assert len(lines) == 22


def write_yaml(chance: random.Random, path: str, lines: list[str], repeated: list[tuple[str, int, int]]) -> None:
    """Writes a random value, a line for each of its parts, and notes the keys that it repeats: path and both lines."""
    kind = chance.choice(["scalar", "list", "mapping"]) if path.count(".") + path.count("[") < 4 else "scalar"
    if kind == "scalar":
        lines.append(chance.choice(["1", "text", "null", "'a: {b: 1, b: 2}'", "!!str 1"]))
    elif kind == "list":
        lines.append("[")
        for number in range(chance.randrange(4)):
            write_yaml(chance, f"{path}[{number}]", lines, repeated)
            lines[-1] += ","
        lines.append("]")
    else:
        lines.append("{")
        first: dict[object, int] = {}
        for _ in range(chance.randrange(5)):
            # One key has many spellings; those of a number are not those of a text.
            key = chance.choice(["a", "b", "c", 16])
            spelling = chance.choice(["16", "0x10", "0o20", "+16"]) if key == 16 else chance.choice([key, f'"{key}"'])
            if key == 16 and spelling == "0o20":
                key = "0o20"  # YAML 1.1 has octal numbers without the letter, so that this is a text.
            lines.append(f"? {spelling}")
            if key in first:
                repeated.append((join_path(path, key), first[key], len(lines)))
            first.setdefault(key, len(lines))
            lines.append(":")
            write_yaml(chance, join_path(path, key), lines, repeated)
            lines[-1] += ","
        lines.append("}")


def test_every_repeated_key_of_any_yaml_is_found_with_its_lines():
    chance = random.Random(19)
    seen = 0
    for _ in range(400):
        lines: list[str] = []
        repeated: list[tuple[str, int, int]] = []
        write_yaml(chance, "", lines, repeated)
        text = "\n".join(lines)
        if not repeated:
            read_yaml(text)
            continue
        seen += 1
        with pytest.raises(YamlError) as error:
            read_yaml(text)
        assert sorted(map(str, error.value.errors)) == sorted(
            f"{path}: duplicate key, in line {before} and in line {after}; remove one"
            for path, before, after in repeated
        ), text
    assert seen > 100


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &x {b: 1, b: 2}\nc: *x", "a.b: duplicate key, in line 1; remove one"),
        ("a: &x [*x]", r"a\[0\]: line 1 is an alias of a node that contains it"),
        ("<<: {a: 1}\n<<: {b: 1}", "<<: duplicate key"),
        ("[" * 1200, "nested too deeply"),
        ("a: 2026-02-30", "is not valid YAML: day is out of range"),
        ("a: 1\n---\na: 2", "expected a single document"),
        ("? [a]\n: 1", "a key must be a string or a number"),
    ],
)
def test_yaml_that_would_lose_or_never_end_is_refused(text, words):
    with pytest.raises(YamlError, match=words):
        read_yaml(text)


def test_a_merged_mapping_may_be_overridden():
    assert read_yaml("x: &x {a: 1, b: 2}\ny: {<<: *x, a: 3}")["y"] == {"a": 3, "b": 2}


def test_a_file_that_is_no_yaml_or_not_there_is_named(tmp_path):
    path = tmp_path / "news.yaml"
    with pytest.raises(SpecificationError, match=r"news\.yaml cannot be read"):
        load_specification(path)
    path.write_text("name: [")
    with pytest.raises(SpecificationError, match=r"news\.yaml: is not valid YAML"):
        load_specification(path)
    path.write_text("train_model:\n  config: {steps: 5}\n  config: {steps: 7}")
    with pytest.raises(
        SpecificationError, match=r"news\.yaml: train_model\.config: duplicate key, in line 2 and in line 3"
    ):
        load_specification(path)


def test_overrides_replace_add_and_remove_and_leave_the_content_alone():
    overrides = parse_overrides(["train_model.config.steps=20", "encode_corpus.validation_fraction=0.5", "name=other"])
    changed_content = override(SCRATCH, {**overrides, "train_tokenizer": None, "import_tokenizer.uri": "/x"})
    specification = parse_specification(changed_content)
    assert specification.name == "other"
    assert specification.requests["train_model"].config.steps == 20
    assert specification.requests["train_model"].model_size == "124M"
    assert specification.requests["encode_corpus"].validation_fraction == 0.5
    assert "train_tokenizer" not in specification.requests
    assert parse_specification(SCRATCH).requests["train_model"].config.steps == 10


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("steps", "must be PATH=VALUE"),
        ("=3", "must be PATH=VALUE"),
        ("name=[", "--set name: is not valid YAML"),
        ("a.b={c: 1, c: 2}", "--set a.b.c: duplicate key"),
    ],
)
def test_an_assignment_that_is_none_is_refused(assignment, words):
    with pytest.raises(SpecificationError, match=words):
        parse_overrides([assignment])


@pytest.mark.parametrize("path", ["name.part", "train_model.config.steps.more"])
def test_an_override_through_a_value_is_refused(path):
    with pytest.raises(SpecificationError, match=f"{path}: cannot be set"):
        override(SCRATCH, {path: 1})
