"""The tokenizer as a service: its stages, their checks, and its other gRPC calls."""

import asyncio
from collections.abc import Mapping
from typing import Any

from gpt2.tokenizer.v1 import tokenizer_service_pb2 as pb
from gpt2_catalogue import Stage, catalogue
from gpt2_common.artifacts import ArtifactStore
from gpt2_common.errors import InvalidRequest
from gpt2_common.jobs.checks import StageChecks, Validator
from gpt2_common.jobs.definition import Work
from gpt2_common.server import ServiceContext, ServiceDefinition
from gpt2_tokenizer import validation
from gpt2_tokenizer.encoding.encoder import EncoderCache
from gpt2_tokenizer.settings import TokenizerSettings


class TokenizerServicer:
    """Answers the calls of gpt2.tokenizer.v1.TokenizerService that start no job.

    Args:
        context: The service's context.
    """

    def __init__(self, context: ServiceContext[TokenizerSettings]) -> None:
        self._encoders = EncoderCache(context.artifacts)

    async def Encode(self, request: pb.EncodeRequest, context: Any) -> pb.EncodeResponse:  # noqa: ARG002
        """Encodes one text."""
        encoder = await asyncio.to_thread(self._encoders.get, request.tokenizer_uri)
        return pb.EncodeResponse(token_ids=await asyncio.to_thread(encoder.encode, request.text))

    async def Decode(self, request: pb.DecodeRequest, context: Any) -> pb.DecodeResponse:  # noqa: ARG002
        """Decodes token ids."""
        encoder = await asyncio.to_thread(self._encoders.get, request.tokenizer_uri)
        _refuse(validation.decode_problems(request.token_ids, encoder.vocabulary_size))
        data = await asyncio.to_thread(encoder.decode, request.token_ids)
        return pb.DecodeResponse(text=data.decode("utf-8", errors="replace"), data=data)


def _checks(settings: TokenizerSettings, artifacts: ArtifactStore) -> Mapping[str, StageChecks]:
    def import_problems(request: pb.ImportTokenizerRequest) -> validation.Problems:
        return validation.import_problems(request, settings, artifacts.require_allowed)

    def require_inputs(stage: Stage) -> Validator:
        def check(request: Any) -> validation.Problems:
            for item in stage.inputs:
                artifacts.read_manifest(item.field, getattr(request, item.field), item.kind)
            return []

        return check

    stages = catalogue().stages
    return {
        "TrainTokenizer": StageChecks(
            request=validation.train_problems, inputs=require_inputs(stages["TrainTokenizer"])
        ),
        "ImportTokenizer": StageChecks(request=import_problems),
        "EncodeCorpus": StageChecks(
            request=validation.encode_corpus_problems, inputs=require_inputs(stages["EncodeCorpus"])
        ),
    }


def _refuse(problems: validation.Problems) -> None:
    if problems:
        raise InvalidRequest(problems)


SERVICE = ServiceDefinition(
    name="tokenizer",
    grpc_service=pb.DESCRIPTOR.services_by_name["TokenizerService"],
    settings=TokenizerSettings,
    work={
        "TrainTokenizer": Work("gpt2_tokenizer.jobs:train_tokenizer"),
        "ImportTokenizer": Work("gpt2_tokenizer.jobs:import_tokenizer"),
        "EncodeCorpus": Work("gpt2_tokenizer.jobs:encode_corpus"),
    },
    checks=_checks,
    servicer=TokenizerServicer,
)
