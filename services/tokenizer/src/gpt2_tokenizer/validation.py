"""What can be wrong with a request, found without opening anything: lists of pairs of field and description."""

import re
from collections.abc import Sequence

from gpt2.tokenizer.v1 import tokenizer_service_pb2 as pb
from gpt2_common.vocabulary.vocabulary import END_TOKEN
from gpt2_tokenizer.dataset.beam_options import beam_option_problems
from gpt2_tokenizer.training import LARGEST_VOCABULARY, LEAST_VOCABULARY

Problems = list[tuple[str, str]]

_LARGEST_TEXT = 1 << 20
_MOST_SPECIAL = 64
# One character alone is a byte's own token already.
_SPECIAL = re.compile("[!-~]{2,64}")


def train_problems(request: pb.TrainTokenizerRequest) -> Problems:
    """What is wrong with a request to train a tokenizer."""
    problems = _required("corpus_uri", request.corpus_uri)
    if request.vocabulary_size and not LEAST_VOCABULARY <= request.vocabulary_size <= LARGEST_VOCABULARY:
        problems.append(
            (
                "vocabulary_size",
                f"must be {LEAST_VOCABULARY} (the 256 bytes and the end token) to {LARGEST_VOCABULARY}",
            )
        )
    elif request.vocabulary_size and request.vocabulary_size < LEAST_VOCABULARY + len(request.special_tokens):
        problems.append(("vocabulary_size", f"has no room for {len(request.special_tokens)} special_tokens"))
    if request.min_frequency < 0:
        problems.append(("min_frequency", "must be 1 or greater, or 0 for the default"))
    if request.sample_bytes < 0:
        problems.append(("sample_bytes", "must be 1 or greater, or 0 for the default"))
    return problems + _special_token_problems(request.special_tokens)


def import_problems(request: pb.ImportTokenizerRequest) -> Problems:
    """What is wrong with a request to import a tokenizer."""
    return _required("uri", request.uri)


def encode_corpus_problems(request: pb.EncodeCorpusRequest) -> Problems:
    """What is wrong with a request to encode a corpus."""
    problems = _required("corpus_uri", request.corpus_uri) + _required("tokenizer_uri", request.tokenizer_uri)
    # Written so that NaN is refused too.
    if request.validation_fraction != 0 and not 0 < request.validation_fraction < 1:
        problems.append(("validation_fraction", "must be over 0 and under 1, or 0 for the default"))
    if request.engine not in pb.Engine.values():
        problems.append(("engine", f"{request.engine} is unknown"))
    if request.beam_options and request.engine != pb.ENGINE_BEAM:
        problems.append(("beam_options", "go with engine ENGINE_BEAM alone"))
    return problems + beam_option_problems(request.beam_options)


def encode_problems(request: pb.EncodeRequest) -> Problems:
    """What is wrong with a request to encode one text."""
    problems = _required("tokenizer_uri", request.tokenizer_uri)
    size = len(request.text.encode())
    if size > _LARGEST_TEXT:
        problems.append(("text", f"has {size} bytes of UTF-8; {_LARGEST_TEXT} are the most: use EncodeCorpus for more"))
    return problems


def decode_problems(token_ids: Sequence[int], vocabulary_size: int) -> Problems:
    """What is wrong with the ids of a request to decode; only the first one that is."""
    for index, token_id in enumerate(token_ids):
        if not 0 <= token_id < vocabulary_size:
            return [(f"token_ids[{index}]", f"is {token_id}; the vocabulary has the ids 0 to {vocabulary_size - 1}")]
    return []


def _special_token_problems(tokens: Sequence[str]) -> Problems:
    problems = []
    if len(tokens) > _MOST_SPECIAL:
        problems.append(("special_tokens", f"are {len(tokens)}; {_MOST_SPECIAL} are the most"))
    for index, token in enumerate(tokens):
        field = f"special_tokens[{index}]"
        if not _SPECIAL.fullmatch(token):
            problems.append((field, f"must be 2 to 64 printable ASCII characters without a space: {token[:70]!r}"))
        elif token == END_TOKEN or token in tokens[:index]:
            problems.append((field, f"{token} is there already"))
    return problems


def _required(field: str, value: str) -> Problems:
    return [] if value else [(field, "is required")]
