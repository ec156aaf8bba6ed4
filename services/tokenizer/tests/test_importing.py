"""Imports of others' tokenizers."""

import hashlib
import json
import re
import shutil

import pytest
from hub_server import COMMIT, REPOSITORY, Hub
from tokenizers import Tokenizer, models, pre_tokenizers

from gpt2.tokenizer.v1 import tokenizer_service_pb2 as pb
from gpt2_common.errors import FailedPrecondition, InvalidRequest, NotFound
from gpt2_common.vocabulary.files import parse_pair, write_vocabulary
from gpt2_common.vocabulary.importing import import_vocabulary
from gpt2_common.vocabulary.vocabulary import UnsoundVocabulary
from gpt2_tokenizer.jobs import import_tokenizer
from gpt2_tokenizer.vocabulary.training import train_vocabulary

ENCODER_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def small():
    return train_vocabulary(lambda: ["Der Hund läuft, der Hund bellt."] * 5, 280, 2)


@pytest.fixture
def folder(small, tmp_path):
    folder = tmp_path / "given"
    folder.mkdir()
    write_vocabulary(small, folder)
    return folder


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_openais_files_come_through_byte_for_byte(openai_folder, tmp_path, make_context):
    shutil.copytree(openai_folder, tmp_path / "given")
    [output] = import_tokenizer(pb.ImportTokenizerRequest(uri=(tmp_path / "given").as_uri()), make_context())
    assert output.counts["vocabulary"] == 50257
    assert output.properties["end_token_id"] == "50256"
    made = tmp_path / "artifacts" / "job" / "tokenizer"
    assert sha256(made / "encoder.json") == ENCODER_SHA256
    assert sha256(made / "vocab.bpe") == MERGES_SHA256
    assert len(output.properties["fingerprint"]) == 64


@pytest.mark.parametrize(
    "names",
    [
        {"encoder.json": "encoder.json", "vocab.bpe": "vocab.bpe"},
        {"encoder.json": "vocab.json", "vocab.bpe": "merges.txt"},
        {"tokenizer.json": "tokenizer.json"},
    ],
)
def test_every_form_gives_the_same_vocabulary(small, folder, names):
    other = folder / "other"
    other.mkdir()
    for source, target in names.items():
        shutil.copy(folder / source, other / target)
    assert import_vocabulary(other.as_uri()) == small


def test_merges_written_as_strings_are_read(small, folder):
    def join(content):
        content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]

    (folder / "encoder.json").unlink()
    edit_json(folder / "tokenizer.json", join)
    assert import_vocabulary(folder.as_uri()) == small


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["pre_tokenizer"].update(add_prefix_space=True), "adds a space before each text"),
        (lambda c: c["pre_tokenizer"].update(use_regex=False), "pre-tokenisation is not GPT-2's"),
        (lambda c: c.update(pre_tokenizer={"type": "Whitespace"}), "pre-tokenisation is not GPT-2's"),
        (lambda c: c.update(pre_tokenizer=None), "pre-tokenisation is not GPT-2's"),
        (lambda c: c.update(normalizer={"type": "NFC"}), "changes texts before it encodes them"),
        (lambda c: c["model"].update(type="Unigram"), "its model is Unigram"),
        (lambda c: c["model"].update(unk_token="[UNK]"), "its model has unk_token"),
        (lambda c: c["added_tokens"].append({"id": 280, "content": "<pad>", "lstrip": True}), "'<pad>' with lstrip"),
        (lambda c: c["model"].update(merges=[["a"]]), "a merge is not two tokens"),
        (lambda c: c["model"]["merges"].pop(), "no merge makes 1 of its tokens"),
        (lambda c: c["model"]["merges"].append(c["model"]["merges"][2]), "is there more than once"),
        (lambda c: c["model"].update(byte_fallback=True, unk_token="<unk>"), "its model has byte_fallback"),
        (lambda c: c["model"].update(type="WordPiece"), "its model is WordPiece"),
        (lambda c: c.update(post_processor={"type": "TemplateProcessing"}), "adds tokens to each text"),
        (lambda c: c["added_tokens"].append({"id": 900, "content": "<|pad|>", "special": True}), "are not 0 to"),
        (lambda c: c.update(model=[1]), "not what the tokenizers library writes"),
        (lambda c: c["model"].update(merges=5), "not what the tokenizers library writes"),
        (lambda c: c.update(pre_tokenizer="x"), "not what the tokenizers library writes"),
    ],
)
def test_a_tokenizer_that_encodes_otherwise_is_refused(folder, change, words):
    (folder / "encoder.json").unlink()
    edit_json(folder / "tokenizer.json", change)
    with pytest.raises(FailedPrecondition, match=words):
        import_vocabulary(folder.as_uri())


def test_a_pair_whose_tokenizer_json_splits_otherwise_is_refused(folder):
    edit_json(folder / "tokenizer.json", lambda content: content.update(pre_tokenizer={"type": "Whitespace"}))
    with pytest.raises(FailedPrecondition, match="pre-tokenisation is not GPT-2's"):
        import_vocabulary(folder.as_uri())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda ids: ids.update({"<|endoftext|>": 5}), "are not 0 to"),
        (lambda ids: ids.update({"a": "b"}), "not a JSON object that gives each its id"),
        (lambda ids: ids.update({"é ": len(ids)}), "not made of byte symbols"),
        (lambda ids: ids.update({"!": len(ids), "zz": ids["!"]}) or ids.pop("!"), "byte symbols are no tokens"),
    ],
)
def test_a_pair_that_does_not_fit_together_is_refused(folder, change, words):
    edit_json(folder / "encoder.json", change)
    with pytest.raises(FailedPrecondition, match=words):
        import_vocabulary(folder.as_uri())


def test_a_pair_whose_merges_are_cut_off_is_refused(folder):
    lines = (folder / "vocab.bpe").read_text().splitlines()
    (folder / "vocab.bpe").write_text("\n".join(lines[:-3]) + "\n")
    with pytest.raises(FailedPrecondition, match=r"no merge makes 3 of its tokens.*cut off"):
        import_vocabulary(folder.as_uri())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("one", "not two tokens"),
        ("q q", "needs 'qq', which is no token"),
        ("a b c", "not two tokens"),
    ],
)
def test_a_merge_that_does_not_resolve_is_refused(folder, line, words):
    with (folder / "vocab.bpe").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(FailedPrecondition, match=words):
        import_vocabulary(folder.as_uri())


def test_a_vocabulary_whose_merges_make_the_end_token_is_refused(folder):
    ids = json.loads((folder / "encoder.json").read_text())
    ids["<|endoftext|"] = len(ids)
    with pytest.raises(UnsoundVocabulary, match="out of text"):
        parse_pair(json.dumps(ids), "<|endoftext| >\n")


def test_a_folder_without_tokenizer_files_is_not_found(tmp_path):
    with pytest.raises(NotFound, match=r"neither encoder\.json and vocab\.bpe"):
        import_vocabulary(tmp_path.as_uri())


def test_a_tokenizer_without_the_end_token_is_refused(folder):
    for name in ("encoder.json", "tokenizer.json"):
        (folder / name).unlink()
    other = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    other.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    other.save(str(folder / "tokenizer.json"))
    with pytest.raises(FailedPrecondition, match=re.escape("no token <|endoftext|>")):
        import_vocabulary(folder.as_uri())


def test_a_folder_outside_the_roots_is_refused(openai_folder, make_context):
    with pytest.raises(InvalidRequest, match="outside the allowed roots"):
        import_tokenizer(pb.ImportTokenizerRequest(uri=openai_folder.as_uri()), make_context())


@pytest.fixture
def hub(folder, monkeypatch):
    for name in ("encoder.json", "vocab.bpe"):
        (folder / name).unlink()
    (folder / "model.safetensors").write_text("not to be downloaded")
    server = Hub(folder)
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    yield server
    server.close()


def test_a_tokenizer_of_a_hub_is_imported_at_a_commit(hub, small, make_context):
    uri = f"hf://{REPOSITORY}"
    [output] = import_tokenizer(pb.ImportTokenizerRequest(uri=f"{uri}@v1.0"), make_context(allowed_roots="hf://"))
    assert import_vocabulary(output.uri) == small
    assert output.properties["source"] == f"{uri}@{COMMIT}"
    assert hub.downloads() == ["tokenizer.json"]


def test_a_hub_without_a_tokenizer_or_outside_the_roots_is_refused(hub, folder, make_context):
    request = pb.ImportTokenizerRequest(uri=f"hf://{REPOSITORY}")
    with pytest.raises(InvalidRequest, match="outside the allowed roots"):
        import_tokenizer(request, make_context())
    (folder / "tokenizer.json").unlink()
    with pytest.raises(NotFound, match="has no tokenizer's file"):
        import_tokenizer(request, make_context(allowed_roots="hf://"))
