"""Generation: sampling, the cache, the end, stops and streamed text."""

import numpy as np
import pytest
from trainer_support import computations, reference
from trainer_support.data import END_TOKEN_ID, VOCABULARY_SIZE, make_tokenizer, random_weights, small_architecture

from gpt2_common.errors import DataLoss
from gpt2_common.vocabulary.byte_symbols import symbol_of_byte
from gpt2_trainer.configuration.sampling import SamplingConfig
from gpt2_trainer.generation.text import TextCodec, TextStream

GREEDY = SamplingConfig(temperature=0.0)
ARCHITECTURE = small_architecture()
WEIGHTS = random_weights(ARCHITECTURE)


@pytest.mark.parametrize("length", [*(pytest.param(length, marks=pytest.mark.exhaustive) for length in (1, 16)), 40])
def test_greedy_generation_equals_full_recomputation(backend, length):
    """Past the end of the context, twice over."""
    prompt = np.random.default_rng(length).integers(0, VOCABULARY_SIZE, length).tolist()
    made = backend(computations.generated, ARCHITECTURE, WEIGHTS, prompt, 2, 40, GREEDY, 0)
    expected = reference.greedy(WEIGHTS, prompt, 40, 2, 2, 16)
    assert made.tolist() == [expected, expected]


def test_a_growing_cache_changes_nothing(jax_process):
    architecture = small_architecture(n_layer=1, n_ctx=256)
    weights = random_weights(architecture)
    made = jax_process(computations.generated, architecture, weights, [1, 2, 3], 1, 200, GREEDY, 0)
    assert made[0].tolist() == reference.greedy(weights, [1, 2, 3], 200, 1, 2, 256)


def test_a_context_of_one_token_works(jax_process):
    architecture = small_architecture(n_ctx=1)
    weights = random_weights(architecture)
    made = jax_process(computations.generated, architecture, weights, [5, 6], 1, 5, GREEDY, 0)
    assert made[0].tolist() == reference.greedy(weights, [5, 6], 5, 2, 2, 1)


def test_a_sample_depends_on_the_seed_and_its_number_alone(jax_process):
    def made(samples, seed):
        options = SamplingConfig(top_k=0)
        return jax_process(computations.generated, ARCHITECTURE, WEIGHTS, [1], samples, 20, options, seed).tolist()

    three = made(3, seed=4)
    assert three[:1] == made(1, seed=4)
    assert three[0] != three[1]
    assert three[0] != made(1, seed=5)[0]


@pytest.mark.parametrize(
    ("width", "samples"),
    [(64, 1), *(pytest.param(*sizes, marks=pytest.mark.exhaustive) for sizes in ((64, 2), (24, 1)))],
)
def test_bfloat16_on_a_cpu_computes_exactly_with_rounded_weights(jax_process, width, samples):
    """A single row goes another way than several, where the width divides; prompts are several rows always."""
    architecture = small_architecture(n_embd=width)
    # So great that rounding them changes what is drawn.
    weights = {name: value if value.ndim == 1 else 10 * value for name, value in random_weights(architecture).items()}
    rounded = {name: value if value.ndim == 1 else rounded_to_bfloat16(value) for name, value in weights.items()}

    def made(weights, precision):
        settings = ([1, 2, 3], samples, 100, SamplingConfig(top_k=0), 0, precision)
        return jax_process(computations.generated, architecture, weights, *settings).tolist()

    assert made(weights, "bfloat16") == made(rounded, "float32") != made(weights, "float32")


def rounded_to_bfloat16(values):
    """To the nearest, and to the even one of two."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize(("rows", "columns"), [(32, 1), (48, 17), (768, 768), (1600, 100), (64, 20_000)])
def test_a_row_is_multiplied_by_a_packed_matrix(jax_process, rows, columns):
    random = np.random.default_rng(rows)
    # Normal numbers of all sizes whose products float32 can hold, and both zeros.
    bits = (random.integers(64, 192, (rows, columns)) << 7 | random.integers(0, 128, (rows, columns))).astype(np.uint16)
    bits |= (random.integers(0, 2, (rows, columns)) << 15).astype(np.uint16)
    bits[0], bits[1] = 0, 0x8000
    matrix = (bits.astype(np.uint32) << 16).view(np.float32)
    places = [0, 1, rows // 2, rows - 1]
    # One row of the matrix at a time, to the bit.
    chosen = np.eye(rows, dtype=np.float32)[places, None, None]
    products, _ = jax_process(computations.packed_products, chosen, bits)
    for place, product in zip(places, products, strict=True):
        assert np.array_equal(product, matrix[None, None, place])


def test_a_product_with_a_packed_matrix_makes_no_float32_matrix(jax_process):
    random = np.random.default_rng(0)
    matrix = rounded_to_bfloat16(random.normal(0, 1, (768, 3072)).astype(np.float32))
    row = random.normal(0, 1, (1, 768)).astype(np.float32)
    bits = (matrix.view(np.uint32) >> 16).astype(np.uint16)
    [product], memory = jax_process(computations.packed_products, [row], bits)
    assert np.allclose(product, row.astype(np.float64) @ matrix, rtol=0, atol=1e-4)
    assert memory < matrix.nbytes / 8


@pytest.mark.parametrize("rows", [2, 16, 40])
def test_rows_that_do_not_divide_are_not_packed(jax_process, rows):
    assert jax_process(computations.packed_products, [np.zeros((1, rows))], np.zeros((rows, 4), np.uint16)) is None


def draws(backend, logits, count=40_000, **sampling):
    config = SamplingConfig(**{"top_k": 0, **sampling})
    drawn = backend(computations.drawn, np.array([logits], np.float32), count, config)
    return np.bincount(drawn, minlength=len(logits)) / count


LOGITS = np.log([0.1, 0.4, 0.05, 0.3, 0.15])


@pytest.mark.parametrize(
    ("controls", "expected"),
    [
        ({}, [0.1, 0.4, 0.05, 0.3, 0.15]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"top_k": 99}, [0.1, 0.4, 0.05, 0.3, 0.15]),
        ({"top_p": 0.6}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"top_p": 0.71}, [0, 0.4 / 0.85, 0, 0.3 / 0.85, 0.15 / 0.85]),
        ({"top_p": 1e-9}, [0, 1, 0, 0, 0]),
        # top_p counts what top_k has left: 4/7 is over a half.
        ({"top_k": 2, "top_p": 0.5}, [0, 1, 0, 0, 0]),
        ({"temperature": 0.5}, np.square([0.1, 0.4, 0.05, 0.3, 0.15]) / 0.285),
        ({"temperature": 0.0}, [0, 1, 0, 0, 0]),
        ({"temperature": 0.0, "top_k": 3}, [0, 1, 0, 0, 0]),
    ],
)
def test_tokens_are_drawn_by_their_probabilities(backend, controls, expected):
    found = draws(backend, LOGITS, **controls)
    # Four standard deviations.
    np.testing.assert_allclose(found, expected, atol=0.01)
    assert ((found > 0) == (np.array(expected) > 0)).all()


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0), [0x6B200159, 0x99BA4EFE]),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), [0x1CB996FC, 0xBB002BE7]),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), [0xC4923A9C, 0x483DF7A0]),
    ],
)
def test_random_bits_are_those_of_the_published_answers(backend, key, counter, expected):
    """Known answers of Random123, the method's reference implementation."""
    assert backend(computations.encrypted, key, counter) == expected


def test_no_temperature_draws_padding_of_the_vocabulary(backend):
    found = draws(backend, [0.0, 1.0, -1e9, -1e9], temperature=3e38)
    np.testing.assert_allclose(found, [0.5, 0.5, 0, 0], atol=0.01)


@pytest.fixture
def codec(tmp_path):
    return TextCodec(make_tokenizer(tmp_path), END_TOKEN_ID)


def byte_tokens(codec, text):
    """One token for each byte of a text."""
    characters = symbol_of_byte()
    tokens = {codec.token_bytes(number): number for number in range(VOCABULARY_SIZE)}
    assert len(characters) == 256
    return [tokens[bytes([byte])] for byte in text.encode()]


def test_characters_are_never_cut(codec):
    text = "aé漢🎉z"
    stream = TextStream(codec, ())
    pieces = [stream.add(token) for token in byte_tokens(codec, text)]
    assert "".join(pieces) == text
    assert [piece for piece in pieces if piece] == list(text)


def test_an_unfinished_character_at_the_end_is_left_out(codec):
    assert codec.decode(byte_tokens(codec, "a🎉")[:-1]) == "a"


def test_bytes_that_are_no_text_become_replacement_characters(codec):
    broken = [byte_tokens(codec, "é")[0], *byte_tokens(codec, "a")]
    assert codec.decode(broken) == "\ufffda"


def test_decoding_stops_at_the_end_token(codec):
    tokens = byte_tokens(codec, "ab")
    assert codec.decode([tokens[0], END_TOKEN_ID, tokens[1]]) == "a"


def test_prompts_become_tokens(codec):
    assert codec.encode_prompt("") == [END_TOKEN_ID]
    assert [codec.token_bytes(token) for token in codec.encode_prompt("the theü")] == [b"the", b" the", "ü".encode()]
    assert codec.encode_prompt("a<|endoftext|>")[-1] == END_TOKEN_ID


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("one END two", ("END",), "one "),
        ("one EN two", ("END",), "one EN two"),
        ("aab", ("ab",), "a"),
        ("abc", ("c", "bc"), "a"),
        ("xéy", ("é",), "x"),
        ("\n\nx", ("\n\n",), ""),
        ("ends with E", ("END",), "ends with E"),
    ],
)
def test_stops_are_found_across_tokens_and_never_shown(codec, text, stops, shown):
    stream, pieces = TextStream(codec, stops), []
    for token in byte_tokens(codec, text):
        pieces.append(stream.add(token))
        if stream.stopped:
            break
    pieces.append(stream.rest())
    assert "".join(pieces) == shown
    assert stream.stopped == any(stop in text for stop in stops)


def test_a_broken_tokenizer_is_data_loss(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataLoss, match=r"tokenizer.json cannot be read as a tokenizer"):
        TextCodec(tmp_path, 0)
