"""What requests can get wrong."""

import pytest
from request_problems import request_problems

from gpt2.tokenizer.v1 import tokenizer_service_pb2 as pb
from gpt2_tokenizer import validation


def train_problems(request):
    return request_problems(request, validation.train_problems(request))


def encode_corpus_problems(request):
    return request_problems(request, validation.encode_corpus_problems(request))


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({}, []),
        ({"vocabulary_size": 257, "min_frequency": 1}, []),
        ({"vocabulary_size": 1_000_000}, []),
        ({"vocabulary_size": 256}, ["vocabulary_size"]),
        ({"vocabulary_size": -1, "min_frequency": -1}, ["vocabulary_size", "min_frequency"]),
        ({"vocabulary_size": 1_000_001}, ["vocabulary_size"]),
        ({"corpus_uri": ""}, ["corpus_uri"]),
        ({"vocabulary_size": 258, "special_tokens": ["<|pad|>"]}, []),
        ({"vocabulary_size": 257, "special_tokens": ["<|pad|>"]}, ["vocabulary_size"]),
        ({"sample_bytes": -1}, ["sample_bytes"]),
        ({"special_tokens": ["<|pad|>", "a b"]}, ["special_tokens[1]"]),
        ({"special_tokens": ["<|pad|>", "<|pad|>"]}, ["special_tokens[1]"]),
        (
            {"special_tokens": ["<|endoftext|>", "x", "ä" * 3, "y" * 65, ""]},
            [f"special_tokens[{n}]" for n in (1, 2, 3, 4, 0)],
        ),
        ({"special_tokens": [f"<|{n}|>" for n in range(65)]}, ["special_tokens"]),
    ],
)
def test_training(fields, wrong):
    request = pb.TrainTokenizerRequest(**{"corpus_uri": "file:///a", **fields})
    assert [field for field, _ in train_problems(request)] == wrong


@pytest.mark.parametrize(
    ("fraction", "right"), [(0, 1), (0.5, 1), (1, 0), (-0.1, 0), (float("nan"), 0), (float("inf"), 0), (1e-12, 1)]
)
def test_encoding_a_corpus(fraction, right):
    request = pb.EncodeCorpusRequest(corpus_uri="a", tokenizer_uri="b", validation_fraction=fraction)
    assert [field for field, _ in encode_corpus_problems(request)] == ["validation_fraction"] * (1 - right)


def test_beam_options_go_with_beam_alone():
    fields = {"corpus_uri": "a", "tokenizer_uri": "b", "beam_options": ["--runner=DirectRunner"]}
    assert [f for f, _ in encode_corpus_problems(pb.EncodeCorpusRequest(**fields))] == ["beam_options"]
    beam = pb.EncodeCorpusRequest(**fields, engine=pb.ENGINE_BEAM)
    assert encode_corpus_problems(beam) == []
    beam.beam_options.append("--setup_file=x")
    assert [f for f, _ in encode_corpus_problems(beam)] == ["beam_options[1]"]
    unknown = pb.EncodeCorpusRequest(corpus_uri="a", tokenizer_uri="b", engine=9)
    assert [f for f, _ in encode_corpus_problems(unknown)] == ["engine"]


def test_everything_that_is_required_is_named():
    assert [f for f, _ in encode_corpus_problems(pb.EncodeCorpusRequest())] == [
        "corpus_uri",
        "tokenizer_uri",
    ]
    assert [f for f, _ in request_problems(pb.ImportTokenizerRequest())] == ["uri"]
    assert [f for f, _ in request_problems(pb.EncodeRequest())] == ["tokenizer_uri"]


def test_a_text_of_more_than_1_mib_is_refused():
    fits = pb.EncodeRequest(tokenizer_uri="a", text="ä" * (1 << 19))
    assert request_problems(fits) == []
    over = pb.EncodeRequest(tokenizer_uri="a", text="ä" * (1 << 19) + "a")
    assert [field for field, _ in request_problems(over)] == ["text"]


@pytest.mark.parametrize(("ids", "wrong"), [([0, 9], []), ([1, 10], ["token_ids[1]"]), ([-1], ["token_ids[0]"])])
def test_ids_outside_the_vocabulary_are_named(ids, wrong):
    assert [field for field, _ in validation.decode_problems(ids, 10)] == wrong
