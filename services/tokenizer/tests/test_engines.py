"""Which library encodes, and that every one that may be chosen gives the ids of tiktoken and tokenizers."""

import logging
import random
import sys
import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from gpt2_common.vocabulary.files import text_tokenizer, text_tokenizer_json, write_vocabulary
from gpt2_common.vocabulary.vocabulary import Vocabulary
from gpt2_tokenizer.encoding import pieces as cutting
from gpt2_tokenizer.encoding.encoder import Encoder
from gpt2_tokenizer.encoding.engines import _ADVERSARIAL, FastEngine, choose_engine, find_difference
from gpt2_tokenizer.encoding.pieces import pieces
from gpt2_tokenizer.vocabulary.training import train_vocabulary

CODE_POINTS = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
# Where libraries' tables of Unicode can disagree: all but the large blocks of one script and the private ones.
TELLING = [
    point
    for point in CODE_POINTS
    if not (0x4E00 <= point < 0x9F00 or 0xAC00 <= point < 0xD700 or 0xE000 <= point < 0xF900 or point >= 0x34000)
    and not (0x20000 <= point < 0x33400 and point % 64)
]
NAMES = ["<|endoftext|>", "<|endof", "text|>", "<|", "|>", " ", "a"]


@pytest.fixture(scope="module")
def german(samples):
    texts = [f"Der Hund Nummer {n} läuft schnell über die Straße; {samples[n % len(samples)]}" for n in range(400)]
    return train_vocabulary(lambda: texts, 1000, 2)


def test_the_fast_library_is_chosen_for_openais_and_for_trained_vocabularies(openai_encoder, german):
    assert openai_encoder.library == "fastokens"
    assert Encoder(german).library == "fastokens"


@pytest.mark.long
@pytest.mark.parametrize(
    "context",
    ["{0}", *(pytest.param(text, marks=pytest.mark.exhaustive) for text in ("'s{0}'ll 9{0}", "  {0}{0}\n{0} \n"))],
)
def test_every_character_has_the_ids_of_tiktoken(openai_encoder, openai_tiktoken, context):
    texts = [context.format(chr(point)) for point in TELLING]
    ids, offsets = openai_encoder.encode_flat(texts)
    expected = openai_tiktoken.encode_ordinary_batch(texts)
    assert np.diff(offsets).tolist() == [len(item) for item in expected]
    assert ids.tolist() == [token for item in expected for token in item]


@pytest.mark.long
def test_every_character_has_the_ids_of_tokenizers_in_a_trained_vocabulary(german):
    texts = [f"x{chr(point)}'ll {chr(point)}'s" for point in TELLING[::7]]
    assert Encoder(german).encode_batch(texts) == Encoder(german, fast=False).encode_batch(texts)


@given(st.lists(st.sampled_from(NAMES), max_size=12).map("".join))
def test_the_end_tokens_name_in_parts_nested_and_repeated_is_text(openai_encoder, openai_tiktoken, text):
    ids = openai_encoder.encode(text)
    assert ids == openai_tiktoken.encode_ordinary(text)
    assert openai_encoder.end_token_id not in ids
    assert openai_encoder.decode(ids) == text.encode()


@pytest.fixture(scope="module")
def both(german):
    return Encoder(german), Encoder(german, fast=False)


@given(st.lists(st.text(), max_size=5))
def test_both_libraries_give_the_same_ids(both, texts):
    fast, slow = both
    assert fast.encode_batch(texts) == slow.encode_batch(texts)


@given(st.lists(st.one_of(st.text(), st.sampled_from(NAMES)), max_size=5))
def test_an_end_token_is_after_each_text_on_request(both, texts):
    for encoder in both:
        ids, offsets = encoder.encode_flat(texts, end_tokens=True)
        found = [ids[begin:end].tolist() for begin, end in pairwise(offsets)]
        assert found == [[*item, encoder.end_token_id] for item in encoder.encode_batch(texts)]


def test_texts_in_pieces_have_their_end_tokens_too(openai_encoder):
    long = "two words " * (cutting.PIECE_CHARACTERS // 7)
    texts = ["", long, "", "short", long * 3, "<|endoftext|>", ""]
    ids, offsets = openai_encoder.encode_flat(texts, end_tokens=True)
    found = [ids[begin:end].tolist() for begin, end in pairwise(offsets)]
    assert found == [[*openai_encoder.encode(text), openai_encoder.end_token_id] for text in texts]
    assert len(openai_encoder.encode_flat([], end_tokens=True)[0]) == 0


@pytest.mark.parametrize("change", ["shuffled ids", "tokens that no merge makes"])
def test_a_vocabulary_numbered_otherwise_has_the_ids_of_tokenizers(german, change):
    if change == "shuffled ids":
        order = random.Random(1).sample(range(german.size), german.size)
        changed = {token: order[index] for index, token in enumerate(german.tokens)}
    else:
        changed = {**german.ids, "zzqq": german.size, "Ġzzqq": german.size + 1}
    vocabulary = Vocabulary.from_parts(changed, german.merges)
    texts = ["Der Hund zzqq zzqq läuft, zz qq zzqqs über Straße"] * 2
    assert Encoder(vocabulary).encode_batch(texts) == Encoder(vocabulary, fast=False).encode_batch(texts)


@pytest.mark.parametrize("name", ["german", "openai_vocabulary"])
def test_the_fast_library_is_given_the_reference_itself(name, request):
    vocabulary = request.getfixturevalue(name)
    assert Tokenizer.from_str(text_tokenizer_json(vocabulary)).to_str() == text_tokenizer(vocabulary).to_str()


def test_without_the_fast_library_the_reference_encodes_with_a_warning(german, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "fastokens", None)
    with caplog.at_level(logging.WARNING):
        assert Encoder(german).library == "tokenizers"
    assert "fastokens is not used (ModuleNotFoundError" in caplog.text


def test_a_library_that_differs_is_found(german, openai_vocabulary):
    texts = ["ordinary", "Straße"]
    trained, openai = choose_engine(german), choose_engine(openai_vocabulary)
    assert find_difference(trained, choose_engine(german, fast=False), texts) == ""
    assert find_difference(trained, openai, texts) == "it encodes 'ordinary' otherwise"


def test_a_library_with_newer_tables_of_unicode_is_found(german, openai_vocabulary):
    """U+A7CE is a letter since Unicode 17, so that what follows it would be a contraction; here it is none yet."""

    class Newer(FastEngine):
        def encode(self, texts, *, end_tokens=False):
            return super().encode([text.replace("\ua7ce", "\ua7ca") for text in texts], end_tokens=end_tokens)

    newer = Newer(choose_engine(openai_vocabulary)._tokenizer)
    probes = ["\ua7ce'll"]
    assert find_difference(newer, choose_engine(openai_vocabulary, fast=False), probes)
    assert any("\ua7ce'll" in text for text in _ADVERSARIAL)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\udc00\ud800"])
def test_a_lone_surrogate_is_a_unicode_error(german, fast, text):
    with pytest.raises(UnicodeEncodeError):
        Encoder(german, fast=fast).encode(text)


@pytest.mark.long
@pytest.mark.timeout(120)
@pytest.mark.parametrize("unit", ["a", " ", "\n", "7", "🙂", "!", "\r\n", "中", "ab", "a\u0301"])
def test_a_mebibyte_of_one_thing_has_the_ids_of_tiktoken(openai_encoder, openai_tiktoken, unit):
    text = unit * ((1 << 20) // len(unit.encode()))
    assert openai_encoder.encode(text) == openai_tiktoken.encode_ordinary(text)


def test_a_text_without_white_space_is_cut(openai_tiktoken):
    text = "".join(f"{{key{n}:[{n * 7919 % 1000},中文、abc{n}]}}" for n in range(2000))
    parts = list(pieces(text, 1000))
    assert max(map(len, parts)) < 1100
    assert [i for part in parts for i in openai_tiktoken.encode_ordinary(part)] == openai_tiktoken.encode_ordinary(text)


@pytest.mark.long
def test_each_character_to_cut_at_is_one_that_splits_in_tiktoken(openai_tiktoken):
    letters = [chr(p) for p in range(0x20000) if cutting._CUT.search(f"{chr(p)}1", 1) and not chr(p).isspace()]
    assert len(letters) > 20_000
    # Most are of two large blocks, of which some will do.
    letters = [
        letter
        for letter in letters
        if unicodedata.category(letter)[0] == "L" and (letter < "一" or ord(letter) % 16 == 5)
    ]
    for context in ("{0}1x{0}!", "1{0}-{0}.", "'{0}'s"):
        texts = [context.format(character) for character in letters]
        whole = openai_tiktoken.encode_ordinary_batch(texts)
        cut = openai_tiktoken.encode_ordinary_batch([part for text in texts for part in _cut_everywhere(text)])
        flat = [token for item in cut for token in item]
        assert flat == [token for item in whole for token in item]


def _cut_everywhere(text):
    places = [0, *(m.start() for m in cutting._CUT.finditer(text)), len(text)]
    return [text[begin:end] for begin, end in pairwise(places)]


@given(
    st.lists(
        st.sampled_from(["ab", "12", "!", "'", "'s", "'ll", " ", "é", "中", "。", "\n", "x'", "_", "\u0301", "²"])
    ),
    st.integers(1, 5),
)
def test_pieces_of_close_mixtures_have_the_tokens_of_the_whole(openai_tiktoken, parts, size):
    text = "".join(parts)
    tokens = [i for part in pieces(text, size) for i in openai_tiktoken.encode_ordinary(part)]
    assert tokens == openai_tiktoken.encode_ordinary(text)


def test_a_trained_vocabulary_is_the_same_in_tiktoken(german, tmp_path, open_tiktoken, samples):
    write_vocabulary(german, tmp_path)
    peer = open_tiktoken(tmp_path, german.end_token_id)
    assert Encoder(german).encode_batch(samples) == [peer.encode_ordinary(text) for text in samples]
