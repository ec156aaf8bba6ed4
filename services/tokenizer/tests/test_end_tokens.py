"""Tokenizers of GPT-2's relatives: other end tokens, and added tokens that are split out of texts."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from gpt2.tokenizer.v1 import tokenizer_service_pb2 as pb
from gpt2_common.errors import FailedPrecondition
from gpt2_common.vocabulary.files import write_vocabulary
from gpt2_common.vocabulary.importing import import_vocabulary
from gpt2_common.vocabulary.vocabulary import Vocabulary
from gpt2_tokenizer.encoding import pieces as cutting
from gpt2_tokenizer.encoding.encoder import Encoder
from gpt2_tokenizer.jobs import encode_corpus, import_tokenizer
from gpt2_tokenizer.vocabulary.training import train_vocabulary

TEXTS = [
    "a</s>b </s> </s></s>",
    "</s>",
    "Der Hund <tag> läuft,New York bellt. New Yorker <tag><tag>",
    "New York",
    " New  York 1<tag>2",
    "",
]


@pytest.fixture(scope="module")
def trained():
    return train_vocabulary(lambda: ["Der Hund läuft, der Hund bellt. New York, New Yorker"] * 5, 290, 2)


@pytest.fixture
def relative(trained):
    """The vocabulary with `</s>` in place of `<|endoftext|>`."""
    ids = {"</s>" if token == "<|endoftext|>" else token: index for token, index in trained.ids.items()}
    return Vocabulary.from_parts(ids, trained.merges, end_token="</s>")


@pytest.fixture
def folder(relative, tmp_path):
    """Its files without what names the end token."""
    folder = tmp_path / "given" / "tokenizer"
    folder.mkdir(parents=True)
    write_vocabulary(relative, folder)
    (folder / "tokenizer_config.json").unlink()
    return folder


def with_added(vocabulary, tokens):
    ids = vocabulary.ids | {token: vocabulary.size + number for number, token in enumerate(tokens)}
    return Vocabulary.from_parts(ids, vocabulary.merges, added_tokens=tokens, end_token=vocabulary.end_token)


def write(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"eos_token": "</s>", "bos_token": "<s>"}},
        {"tokenizer_config": {"eos_token": {"content": "</s>", "lstrip": False}}},
        {"special_tokens_map": {"eos_token": {"content": "</s>"}}},
        {"config": {"model_type": "gpt2", "eos_token_id": 283}},
    ],
    ids=["name", "object", "special tokens map", "config of the model"],
)
@pytest.mark.parametrize("pair", [True, False])
def test_an_end_token_other_than_gpt2s_is_taken_from_what_names_it(relative, folder, files, pair, make_context):
    write(folder, **files)
    (folder / ("tokenizer.json" if pair else "encoder.json")).unlink()
    [output] = import_tokenizer(pb.ImportTokenizerRequest(uri=folder.as_uri()), make_context())
    assert output.properties["end_token"] == "</s>"
    assert output.properties["end_token_id"] == "283"
    # The artifact says so itself, to us and to transformers.
    assert import_vocabulary(output.uri) == relative
    config = json.loads((folder.parents[1] / "artifacts/job/tokenizer/tokenizer_config.json").read_text())
    assert config["eos_token"] == "</s>"


def test_a_stale_end_token_of_a_models_config_does_not_count(trained, tmp_path):
    write_vocabulary(trained, tmp_path)
    for stale in (50256, 7, 260, True, "x", [1, 2]):
        write(tmp_path, config={"eos_token_id": stale})
        assert import_vocabulary(tmp_path.as_uri()) == trained
    (tmp_path / "config.json").write_text("{")
    assert import_vocabulary(tmp_path.as_uri()) == trained


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, r"no token <\|endoftext\|> and names no other end token: set eos_token in tokenizer_config.json"),
        ({"tokenizer_config": {"eos_token": "<end>"}}, "end token '<end>', the eos_token of tokenizer_config.json"),
        ({"tokenizer_config": {"eos_token": "e"}}, "'e' is a byte symbol"),
        ({"tokenizer_config": {"eos_token": "er"}}, "makes er out of text"),
    ],
)
def test_an_end_token_that_cannot_be_one_is_refused_by_name(folder, files, words):
    write(folder, **files)
    with pytest.raises(FailedPrecondition, match=words):
        import_vocabulary(folder.as_uri())


@pytest.mark.parametrize("fast", [True, False])
def test_another_end_token_is_after_each_text_and_plain_text_in_it(relative, fast):
    encoder = Encoder(relative, fast=fast)
    ids, offsets = encoder.encode_flat(TEXTS, end_tokens=True)
    assert (ids[offsets[1:] - 1] == 283).all()
    assert (ids == 283).sum() == len(TEXTS)
    for text in TEXTS:
        assert encoder.decode(encoder.encode(text)).decode() == text


def test_a_dataset_has_the_tokenizers_own_end_token(folder, make_context, make_corpus, open_dataset):
    write(folder, tokenizer_config={"eos_token": "</s>"})
    [tokenizer] = import_tokenizer(pb.ImportTokenizerRequest(uri=folder.as_uri()), make_context("import"))
    texts = [f"{n} </s> Hund" for n in range(40)]
    request = pb.EncodeCorpusRequest(
        corpus_uri=make_corpus(texts), tokenizer_uri=tokenizer.uri, validation_fraction=0.3
    )
    [output] = encode_corpus(request, make_context("encode"))
    dataset = open_dataset(output)
    assert (dataset.facts["end_token"], dataset.facts["end_token_id"]) == ("</s>", 283)
    tokens = np.concatenate([*dataset.shards("train"), *dataset.shards("validation")])
    assert (tokens == 283).sum() == len(texts)
    assert json.loads((dataset.folder / "tokenizer/tokenizer_config.json").read_text())["eos_token"] == "</s>"


ADDED = ["<tag>", "New York", "für", "a b"]


def test_added_tokens_are_split_out_of_texts_as_the_tokenizers_library_does(relative, tmp_path):
    vocabulary = with_added(relative, ADDED)
    write_vocabulary(vocabulary, tmp_path)
    assert import_vocabulary(tmp_path.as_uri()) == vocabulary
    peer, encoder = Tokenizer.from_file(str(tmp_path / "tokenizer.json")), Encoder(vocabulary)
    texts = [text for text in TEXTS if "</s>" not in text] + ["für fürüber ü", "a b a  b xa bx"]
    for text in texts:
        assert encoder.encode(text) == peer.encode(text).ids
        assert encoder.decode(encoder.encode(text)).decode() == text
    assert encoder.encode("New York<tag>") == [285, 284]
    assert (
        vocabulary.fingerprint
        != Vocabulary.from_parts(vocabulary.ids, vocabulary.merges, ADDED, end_token="</s>").fingerprint
    )


@pytest.mark.parametrize("size", [1, 3, 10])
def test_pieces_of_a_long_text_cut_through_no_added_token(relative, size, monkeypatch):
    encoder = Encoder(with_added(relative, ADDED))
    text = " ".join(text for text in TEXTS if text) * 3
    whole = encoder.encode(text)
    parts = list(cutting.pieces(text, size, whole=ADDED))
    assert len(parts) > 3
    assert "".join(parts) == text
    assert [index for part in parts for index in encoder.encode(part)] == whole


def added(folder, **flags):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({"id": 284, "content": "<tag>", "special": False, "normalized": True, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize("pair", [True, False])
def test_added_tokens_of_a_folder_are_imported(relative, folder, pair):
    added(folder)
    write(folder, tokenizer_config={"eos_token": "</s>"})
    if not pair:
        (folder / "encoder.json").unlink()
    assert import_vocabulary(folder.as_uri()) == with_added(relative, ["<tag>"])


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_added_tokens_that_take_more_than_themselves_are_refused_by_name(folder, flag):
    added(folder, **{flag: True})
    with pytest.raises(FailedPrecondition, match=f"adds the token '<tag>' with {flag}"):
        import_vocabulary(folder.as_uri())


def test_special_tokens_of_any_characters_are_taken(relative, tmp_path):
    ids = relative.ids | {"<｜Ende der Ausführung｜>": relative.size}
    vocabulary = Vocabulary.from_parts(ids, relative.merges, ["<｜Ende der Ausführung｜>"], end_token="</s>")
    write_vocabulary(vocabulary, tmp_path)
    assert import_vocabulary(tmp_path.as_uri()) == vocabulary
    assert Encoder(vocabulary).decode([relative.size]).decode() == "<｜Ende der Ausführung｜>"
