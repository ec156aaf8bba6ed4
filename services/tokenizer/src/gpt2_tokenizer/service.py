"""The gRPC face of the tokenizer. Translates messages; decides nothing."""

import asyncio
from typing import Any

import grpc.aio

from gpt2.tokenizer.v1 import tokenizer_service_pb2 as pb
from gpt2.tokenizer.v1 import tokenizer_service_pb2_grpc
from gpt2_common.artifacts import ArtifactStore
from gpt2_common.errors import InvalidRequest
from gpt2_common.jobs.manager import JobManager
from gpt2_common.server import ServiceDefinition, ServiceSurroundings
from gpt2_tokenizer import validation
from gpt2_tokenizer.download import download_url, is_download
from gpt2_tokenizer.jobs import ENCODE_CORPUS, IMPORT_TOKENIZER, TRAIN_TOKENIZER
from gpt2_tokenizer.opened import OpenedTokenizers
from gpt2_tokenizer.settings import TokenizerSettings


class TokenizerServicer(tokenizer_service_pb2_grpc.TokenizerServiceServicer):
    """Serves gpt2.tokenizer.v1.TokenizerService.

    Args:
        jobs: Where jobs are started.
        artifacts: Where artifacts are read.
        settings: What the service may do.
    """

    def __init__(self, jobs: JobManager, artifacts: ArtifactStore, settings: TokenizerSettings) -> None:
        self._settings = settings
        self._jobs = jobs
        self._artifacts = artifacts
        self._opened = OpenedTokenizers(artifacts)

    async def TrainTokenizer(self, request: pb.TrainTokenizerRequest, context: Any) -> pb.TrainTokenizerResponse:  # noqa: ARG002
        """Starts the training of a tokenizer."""
        problems = validation.train_problems(request)
        if not problems:
            await self._require_artifact("corpus_uri", request.corpus_uri, "corpus")
        return pb.TrainTokenizerResponse(job=await self._jobs.start(TRAIN_TOKENIZER, request, problems))

    async def ImportTokenizer(self, request: pb.ImportTokenizerRequest, context: Any) -> pb.ImportTokenizerResponse:  # noqa: ARG002
        """Starts the import of a tokenizer."""
        problems = validation.import_problems(request)
        if not problems and is_download(request.uri):
            download_url(request.uri, self._settings)
        elif not problems:
            self._artifacts.require_allowed("uri", request.uri)
        return pb.ImportTokenizerResponse(job=await self._jobs.start(IMPORT_TOKENIZER, request, problems))

    async def EncodeCorpus(self, request: pb.EncodeCorpusRequest, context: Any) -> pb.EncodeCorpusResponse:  # noqa: ARG002
        """Starts the encoding of a corpus."""
        problems = validation.encode_corpus_problems(request)
        if not problems:
            await self._require_artifact("corpus_uri", request.corpus_uri, "corpus")
            await self._require_artifact("tokenizer_uri", request.tokenizer_uri, "tokenizer")
        return pb.EncodeCorpusResponse(job=await self._jobs.start(ENCODE_CORPUS, request, problems))

    async def Encode(self, request: pb.EncodeRequest, context: Any) -> pb.EncodeResponse:  # noqa: ARG002
        """Encodes one text."""
        _refuse(validation.encode_problems(request))
        encoder = await asyncio.to_thread(self._opened.get, request.tokenizer_uri)
        return pb.EncodeResponse(token_ids=await asyncio.to_thread(encoder.encode, request.text))

    async def Decode(self, request: pb.DecodeRequest, context: Any) -> pb.DecodeResponse:  # noqa: ARG002
        """Decodes token ids."""
        encoder = await asyncio.to_thread(self._opened.get, request.tokenizer_uri)
        _refuse(validation.decode_problems(request.token_ids, encoder.vocabulary_size))
        data = await asyncio.to_thread(encoder.decode, request.token_ids)
        return pb.DecodeResponse(text=data.decode("utf-8", errors="replace"), data=data)

    async def _require_artifact(self, field: str, uri: str, kind: str) -> None:
        await asyncio.to_thread(self._artifacts.read_manifest, field, uri, kind)


def _refuse(problems: validation.Problems) -> None:
    if problems:
        raise InvalidRequest(problems)


def _add_servicer(surroundings: ServiceSurroundings[TokenizerSettings], server: grpc.aio.Server) -> TokenizerServicer:
    servicer = TokenizerServicer(surroundings.jobs, surroundings.artifacts, surroundings.settings)
    tokenizer_service_pb2_grpc.add_TokenizerServiceServicer_to_server(servicer, server)
    return servicer


SERVICE = ServiceDefinition(
    name="tokenizer",
    grpc_service="gpt2.tokenizer.v1.TokenizerService",
    settings=TokenizerSettings,
    kinds=[TRAIN_TOKENIZER, IMPORT_TOKENIZER, ENCODE_CORPUS],
    add_servicer=_add_servicer,
)
