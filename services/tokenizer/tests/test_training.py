"""Training of vocabularies."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_tokenizer.encoder import Encoder
from gpt2_tokenizer.training import train_vocabulary
from gpt2_tokenizer.vocabulary.byte_symbols import symbol_of_byte
from gpt2_tokenizer.vocabulary.files import write_vocabulary

TEXTS = [f"Der Hund Nummer {n} läuft schnell über die Straße." for n in range(200)]


def test_the_smallest_vocabulary_is_the_bytes_and_the_end_token():
    vocabulary = train_vocabulary(TEXTS, 257, 2)
    assert vocabulary.tokens == (*symbol_of_byte().values(), "<|endoftext|>")
    assert Encoder(vocabulary).decode(Encoder(vocabulary).encode("ß")) == "ß".encode()


def test_the_end_token_is_the_last_id_and_all_bytes_are_there():
    vocabulary = train_vocabulary(TEXTS, 300, 2)
    assert vocabulary.size == 300
    assert vocabulary.end_token_id == 299
    assert vocabulary.tokens[:256] == tuple(symbol_of_byte().values())
    assert [left + right for left, right in vocabulary.merges] == list(vocabulary.tokens[256:299])


def test_a_small_corpus_gives_fewer_tokens():
    vocabulary = train_vocabulary(["ab ab"], 50257, 2)
    assert vocabulary.tokens[256:] == ("ab", "<|endoftext|>")


@pytest.mark.parametrize(("min_frequency", "merges"), [(1, 2), (3, 1), (4, 0)])
def test_a_pair_is_merged_when_it_occurs_often_enough(min_frequency, merges):
    assert len(train_vocabulary(["ab", "abc", "ab"], 1000, min_frequency).merges) == merges


def test_the_end_tokens_name_in_a_corpus_is_learned_as_text():
    vocabulary = train_vocabulary(["<|endoftext|>"] * 10, 1000, 2)
    assert "endoftext" in vocabulary.tokens
    assert vocabulary.end_token_id not in Encoder(vocabulary).encode("<|endoftext|>")


def test_training_is_the_same_in_every_process():
    code = (
        "from gpt2_tokenizer.training import train_vocabulary as t;"
        "print(t([f'Der Hund {n} {n * 7919 % 1000} über abab' for n in range(3000)], 2000, 1).fingerprint)"
    )
    prints = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(3)}
    assert len(prints) == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("ab ", max_size=30), max_size=20))
def test_whatever_was_trained_tiktoken_agrees(tmp_path_factory, open_tiktoken, texts):
    vocabulary = train_vocabulary(texts, 600, 1)
    folder = tmp_path_factory.mktemp("pair")
    write_vocabulary(vocabulary, folder)
    peer = open_tiktoken(folder, vocabulary.end_token_id)
    probes = [*texts, "abababab" * 5, "aaaaaaa bbbbb" * 3]
    assert Encoder(vocabulary).encode_batch(probes) == [peer.encode_ordinary(text) for text in probes]
