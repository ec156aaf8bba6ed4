"""Training of vocabularies."""

import os
import subprocess
import sys

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gpt2.tokenizer.v1 import tokenizer_service_pb2 as pb
from gpt2_common.vocabulary.byte_symbols import symbol_of_byte
from gpt2_common.vocabulary.files import read_vocabulary, write_vocabulary
from gpt2_common.vocabulary.importing import import_vocabulary
from gpt2_tokenizer.corpus.selection import hash_fractions, min_sample_fraction
from gpt2_tokenizer.encoding.encoder import Encoder
from gpt2_tokenizer.jobs import train_tokenizer
from gpt2_tokenizer.vocabulary.training import train_vocabulary

# OpenAI's, gpt-2/src/encoder.py, as tiktoken writes it.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

TEXTS = [f"Der Hund Nummer {n} läuft schnell über die Straße." for n in range(200)]


def test_the_smallest_vocabulary_is_the_bytes_and_the_end_token():
    vocabulary = train_vocabulary(lambda: TEXTS, 257, 2)
    assert vocabulary.tokens == (*symbol_of_byte().values(), "<|endoftext|>")
    assert Encoder(vocabulary).decode(Encoder(vocabulary).encode("ß")) == "ß".encode()


def test_the_end_token_is_the_last_id_and_all_bytes_are_there():
    vocabulary = train_vocabulary(lambda: TEXTS, 300, 2)
    assert vocabulary.size == 300
    assert vocabulary.end_token_id == 299
    assert vocabulary.tokens[:256] == tuple(symbol_of_byte().values())
    assert [left + right for left, right in vocabulary.merges] == list(vocabulary.tokens[256:299])


def test_a_small_corpus_gives_fewer_tokens():
    vocabulary = train_vocabulary(lambda: ["ab ab"], 50257, 2)
    assert vocabulary.tokens[256:] == ("ab", "<|endoftext|>")


def test_one_letter_or_nothing_is_learned_in_linear_time():
    assert train_vocabulary(list, 1000, 1).size == 257
    assert train_vocabulary(lambda: ["a"], 1000, 1).size == 257
    vocabulary = train_vocabulary(lambda: ["a" * 100_000], 1000, 1)
    assert vocabulary.tokens[256:260] == ("aa", "aaaa", "a" * 8, "a" * 16)
    assert vocabulary.tokens[-2] == "a" * 100_000
    assert Encoder(vocabulary).encode("a" * 100_000) == [vocabulary.size - 2]


@settings(max_examples=min(50, settings.default.max_examples))
@given(st.lists(st.text("ab é'\n\t7.", max_size=60), max_size=30))
def test_parentheses_in_the_pattern_change_no_vocabulary(texts):
    plain = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    found = train_vocabulary(lambda: texts, 600, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt2_tokenizer.vocabulary.training._PATTERN", plain)
        assert train_vocabulary(lambda: texts, 600, 1) == found


@pytest.mark.long
@settings(max_examples=min(50, settings.default.max_examples))
@given(st.lists(st.text("ab ", max_size=40), max_size=20), st.integers(2, 9))
def test_a_frequency_is_the_count_of_the_token_for_both_libraries(texts, least):
    found = train_vocabulary(lambda: texts, 600, least)
    if found.merges:
        ids = Encoder(found, fast=False).encode_batch(texts)
        assert sum(item.count(found.end_token_id - 1) for item in ids) >= least
    more = train_vocabulary(lambda: texts, 258 + len(found.merges), 1)
    if len(more.merges) > len(found.merges):
        ids = Encoder(more, fast=False).encode_batch(texts)
        assert sum(item.count(more.end_token_id - 1) for item in ids) < least
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt2_tokenizer.vocabulary.training._SHORT_CHARACTERS", -1)
        assert train_vocabulary(lambda: texts, 600, least) == found


@settings(max_examples=20)
@given(st.text("ab", min_size=50, max_size=900))
def test_long_tokens_come_of_the_same_merges(text):
    with pytest.MonkeyPatch.context() as patch:
        found = []
        for longest in (2, 10_000):
            patch.setattr("gpt2_tokenizer.vocabulary.training._LONG_TOKEN", longest)
            found.append(train_vocabulary(lambda: [text], 600, 1))
    assert found[0] == found[1]


@pytest.mark.parametrize(("min_frequency", "merges"), [(1, 2), (3, 1), (4, 0)])
def test_a_pair_is_merged_when_it_occurs_often_enough(min_frequency, merges):
    assert len(train_vocabulary(lambda: ["ab", "abc", "ab"], 1000, min_frequency).merges) == merges


def test_the_end_tokens_name_in_a_corpus_is_learned_as_text():
    vocabulary = train_vocabulary(lambda: ["<|endoftext|>"] * 10, 1000, 2)
    assert "endoftext" in vocabulary.tokens
    assert vocabulary.end_token_id not in Encoder(vocabulary).encode("<|endoftext|>")


def test_further_special_tokens_are_the_last_and_never_come_out_of_text(tmp_path):
    vocabulary = train_vocabulary(lambda: [*TEXTS, "<|pad|> <|user|>"] * 3, 300, 2, ["<|pad|>", "<|user|>"])
    assert vocabulary.size == 300
    assert vocabulary.tokens[-3:] == ("<|endoftext|>", "<|pad|>", "<|user|>")
    encoder = Encoder(vocabulary)
    ids = encoder.encode("<|pad|><|user|><|endoftext|>")
    assert max(ids) < vocabulary.end_token_id
    assert encoder.decode(ids) == b"<|pad|><|user|><|endoftext|>"
    assert encoder.decode([298, 299]) == b"<|pad|><|user|>"
    write_vocabulary(vocabulary, tmp_path)
    peer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert peer.encode("a<|pad|>").ids[-1] == 298
    assert import_vocabulary(tmp_path.as_uri()) == vocabulary
    (tmp_path / "encoder.json").unlink()
    assert import_vocabulary(tmp_path.as_uri()) == vocabulary


def test_special_tokens_are_in_the_artifact(make_corpus, make_context, store):
    request = pb.TrainTokenizerRequest(corpus_uri=make_corpus(TEXTS), vocabulary_size=300, special_tokens=["<|pad|>"])
    [output] = train_tokenizer(request, make_context())
    assert output.properties["special_tokens"] == '["<|pad|>"]'
    vocabulary = read_vocabulary(store.open("", output.uri, "tokenizer"))
    assert (vocabulary.special_tokens, vocabulary.fingerprint) == (("<|pad|>",), output.properties["fingerprint"])


def test_a_sample_is_the_same_in_any_order_and_no_larger_than_asked(make_corpus, make_context):
    texts = [f"{n} " + f"word{n % 50} " * 20 for n in range(2000)]
    prints = set()
    for name, order in (("forward", texts), ("backward", texts[::-1])):
        uri = make_corpus(order, name, shard_documents=300)
        request = pb.TrainTokenizerRequest(corpus_uri=uri, vocabulary_size=400, sample_bytes=60_000)
        prints.add(train_tokenizer(request, make_context(name))[0].properties["fingerprint"])
    assert len(prints) == 1
    corpus = make_context().open("", make_corpus(texts), "corpus")
    least = min_sample_fraction(corpus, 60_000, lambda: None)
    sizes = [len(text.encode()) for text in texts if hash_fractions([text.encode()])[0] >= least]
    assert 59_000 < sum(sizes) < 61_000
    assert min_sample_fraction(corpus, 1 << 40, lambda: None) == 0
    assert min_sample_fraction(corpus, sum(len(text.encode()) for text in texts), lambda: None) == 0


def test_a_large_corpus_is_sampled_where_nothing_is_asked_for(make_corpus, make_context, monkeypatch):
    uri = make_corpus([f"{n} " + f"word{n % 50} " * 20 for n in range(2000)], shard_documents=300)
    prints = []
    for name, sample_bytes in (("whole", 0), ("asked", 60_000), ("default", 0)):
        if name == "default":
            monkeypatch.setattr("gpt2_tokenizer.jobs.DEFAULT_SAMPLE_BYTES", 60_000)
        request = pb.TrainTokenizerRequest(corpus_uri=uri, vocabulary_size=400, sample_bytes=sample_bytes)
        prints.append(train_tokenizer(request, make_context(name))[0].properties["fingerprint"])
    assert prints[0] != prints[1] == prints[2]


def test_the_pre_tokenisation_is_that_of_tiktoken(openai_tiktoken):
    """Each character, twice with a letter, a digit and a mark around it, is learned as tiktoken would split it."""
    points = [0x88F, 0xC5C, 0xA7CE, 0xA7DA, 0x10940, 0x1C89, 0x10D40, 0x11DE0, 0x16EA0, 0x2EBF0, 0x323B0, 0x85, 0x180E]
    for point in points:
        character = chr(point)
        text = f"q{character}q {character}7"
        learned = Encoder(train_vocabulary(lambda text=text: [text] * 5, 1000, 2))
        splits = regex_splits(text)
        assert [learned.decode([i]).decode() for i in learned.encode(text)] == splits


def regex_splits(text):
    """tiktoken's own splits: with each byte sequence a token, a part is one token."""
    parts = {text[begin:end].encode() for begin in range(len(text)) for end in range(begin + 1, len(text) + 1)}
    singles = [bytes([byte]) for byte in range(256)]
    ranks = {part: rank for rank, part in enumerate([*singles, *sorted(parts - set(singles), key=len)])}
    encoding = tiktoken.Encoding("splits", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})
    return [encoding.decode([token]) for token in encoding.encode_ordinary(text)]


@pytest.mark.process
def test_the_number_of_threads_and_the_hash_seed_change_nothing():
    code = (
        "from gpt2_tokenizer.vocabulary.training import train_vocabulary as t;"
        "print(t(lambda: [f'Der Hund {n} {n * 7919 % 1000} über abab' for n in range(5000)], 3000, 2).fingerprint)"
    )
    prints = set()
    for threads in ("1", "2", "5"):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        command = [sys.executable, "-c", code]
        prints.add(subprocess.run(command, capture_output=True, check=True, env=environment).stdout)
    assert len(prints) == 1


@pytest.mark.process
def test_training_is_the_same_in_every_process():
    code = (
        "from gpt2_tokenizer.vocabulary.training import train_vocabulary as t;"
        "print(t(lambda: [f'Der Hund {n} {n * 7919 % 1000} über abab' for n in range(3000)], 2000, 1).fingerprint)"
    )
    prints = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(3)}
    assert len(prints) == 1


@settings(max_examples=min(40, settings.default.max_examples))
@given(st.lists(st.text("ab ", max_size=30), max_size=20))
def test_whatever_was_trained_tiktoken_agrees(tmp_path_factory, open_tiktoken, texts):
    vocabulary = train_vocabulary(lambda: texts, 600, 1)
    folder = tmp_path_factory.mktemp("pair")
    write_vocabulary(vocabulary, folder)
    peer = open_tiktoken(folder, vocabulary.end_token_id)
    probes = [*texts, "abababab" * 5, "aaaaaaa bbbbb" * 3]
    assert Encoder(vocabulary).encode_batch(probes) == [peer.encode_ordinary(text) for text in probes]
