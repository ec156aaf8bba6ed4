"""Token ids are those of OpenAI's encoder, and bytes come back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gpt2_common.vocabulary.files import write_vocabulary
from gpt2_tokenizer.encoding.encoder import Encoder
from gpt2_tokenizer.encoding.pieces import pieces
from gpt2_tokenizer.vocabulary.training import train_vocabulary

WORDS = [
    "the",
    " Straße",
    "中文",
    " ",
    "\n",
    "'ll",
    "<|endoftext|>",
    "\u00a0",
    "é",
    "e\u0301",
    "🙂",
    "123",
    "!?",
    "\r\n",
]
TEXTS = st.one_of(st.text(), st.lists(st.sampled_from(WORDS)).map("".join))


def test_ids_are_those_of_tiktoken(openai_encoder, openai_tiktoken, samples):
    assert openai_encoder.encode_batch(samples) == [openai_tiktoken.encode_ordinary(text) for text in samples]


@given(TEXTS)
def test_ids_of_any_text_are_those_of_tiktoken(openai_encoder, openai_tiktoken, text):
    token_ids = openai_encoder.encode(text)
    assert token_ids == openai_tiktoken.encode_ordinary(text)
    assert openai_encoder.decode(token_ids) == text.encode()


def test_the_end_tokens_name_in_a_text_is_text(openai_encoder):
    token_ids = openai_encoder.encode("<|endoftext|>")
    assert openai_encoder.end_token_id == 50256
    assert 50256 not in token_ids
    assert openai_encoder.decode(token_ids) == b"<|endoftext|>"
    assert openai_encoder.decode([50256]) == b"<|endoftext|>"


@given(TEXTS, st.integers(1, 7))
def test_pieces_of_a_text_have_the_tokens_of_the_whole(openai_tiktoken, text, size):
    parts = list(pieces(text, size))
    assert "".join(parts) == text
    assert [i for part in parts for i in openai_tiktoken.encode_ordinary(part)] == openai_tiktoken.encode_ordinary(text)


def test_long_texts_are_cut_into_pieces_of_bounded_size():
    text = "some words and\n\n   more of them " * 1000
    assert max(map(len, pieces(text, 100))) < 150


@pytest.mark.timeout(120)
@pytest.mark.parametrize("text", ["a" * 1_000_000, " " * 1_000_000, "a b" * 300_000, "\n" * 1_000_000 + "x"])
def test_long_and_dull_texts_take_linear_time(openai_encoder, text):
    assert openai_encoder.decode(openai_encoder.encode(text)) == text.encode()


@pytest.fixture(scope="module")
def trained(samples):
    return train_vocabulary(lambda: samples * 3 + ["abab ababab aaaa aaaaaaa"] * 5, 700, 2)


@pytest.fixture(scope="module")
def trained_folder(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    write_vocabulary(trained, folder)
    return folder


@pytest.fixture(scope="module")
def trained_peers(trained, trained_folder, open_tiktoken):
    return Encoder(trained), open_tiktoken(trained_folder, trained.end_token_id)


@given(TEXTS)
def test_a_trained_pair_gives_the_same_ids_in_tiktoken(trained_peers, text):
    encoder, peer = trained_peers
    assert encoder.encode(text) == peer.encode_ordinary(text)


def test_tokenizer_json_gives_the_same_ids_and_knows_the_end_token(trained, trained_folder, samples):
    peer = Tokenizer.from_file(str(trained_folder / "tokenizer.json"))
    encoder = Encoder(trained)
    for text in samples:
        if "<|endoftext|>" not in text:
            assert peer.encode(text).ids == encoder.encode(text)
            assert peer.decode(peer.encode(text).ids) == text
    assert peer.token_to_id("<|endoftext|>") == trained.end_token_id
    assert peer.encode("a<|endoftext|>").ids[-1] == trained.end_token_id
    assert peer.get_vocab_size() == trained.size
