"""Checks requests without opening anything: problems are pairs of field and description."""

from collections.abc import Callable, Sequence
from functools import partial

from gpt2.tokenizer.v1 import tokenizer_service_pb2 as pb
from gpt2_common.errors import violations_of
from gpt2_contracts.tokenizer import END_TOKEN
from gpt2_tokenizer.dataset.beam_options import beam_option_problems
from gpt2_tokenizer.settings import TokenizerSettings
from gpt2_tokenizer.vocabulary.download import download_url, is_download
from gpt2_tokenizer.vocabulary.training import MIN_VOCABULARY

Problems = list[tuple[str, str]]
AllowCheck = Callable[[str, str], str]


def train_problems(request: pb.TrainTokenizerRequest) -> Problems:
    """Returns the problems of a request to train a tokenizer, except for the rules of its fields."""
    problems: Problems = []
    if request.vocabulary_size and request.vocabulary_size < MIN_VOCABULARY + len(request.special_tokens):
        problems.append(("vocabulary_size", f"has no room for {len(request.special_tokens)} special_tokens"))
    return problems + _special_token_problems(request.special_tokens)


def import_problems(
    request: pb.ImportTokenizerRequest, settings: TokenizerSettings, require_allowed: AllowCheck
) -> Problems:
    """Returns the problems of a request to import a tokenizer.

    Args:
        request: The request.
        settings: The settings with the allowed downloads.
        require_allowed: Takes a field and a URI; raises InvalidRequest when the URI is outside the allowed roots.
    """
    if is_download(request.uri):
        return violations_of(partial(download_url, request.uri, settings))
    return violations_of(partial(require_allowed, "uri", request.uri))


def encode_corpus_problems(request: pb.EncodeCorpusRequest) -> Problems:
    """Returns the problems of a request to encode a corpus."""
    problems: Problems = []
    if request.beam_options and request.engine != pb.ENGINE_BEAM:
        problems.append(("beam_options", "apply only to engine ENGINE_BEAM"))
    return problems + beam_option_problems(request.beam_options)


def decode_problems(token_ids: Sequence[int], vocabulary_size: int) -> Problems:
    """Returns the problem of the first invalid id of a request to decode; empty when all are valid."""
    for index, token_id in enumerate(token_ids):
        if not 0 <= token_id < vocabulary_size:
            return [(f"token_ids[{index}]", f"is {token_id}; the vocabulary has the ids 0 to {vocabulary_size - 1}")]
    return []


def _special_token_problems(tokens: Sequence[str]) -> Problems:
    return [
        (f"special_tokens[{index}]", f"{token} is always in the vocabulary: leave it out")
        for index, token in enumerate(tokens)
        if token == END_TOKEN
    ]
