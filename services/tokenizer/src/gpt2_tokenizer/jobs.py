"""The tokenizer's jobs: what runs in a child process for each start call."""

from collections.abc import Collection, Iterator, Sequence
from functools import partial

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.tokenizer.v1 import tokenizer_service_pb2 as pb
from gpt2_common.artifacts import Artifact
from gpt2_common.errors import NotFound
from gpt2_common.hub import SCHEME, HubAddress
from gpt2_common.jobs.context import JobContext, output
from gpt2_common.vocabulary.files import commit_vocabulary
from gpt2_common.vocabulary.importing import TOKENIZER_FILES, import_vocabulary
from gpt2_common.vocabulary.vocabulary import Vocabulary
from gpt2_contracts import openai
from gpt2_contracts.artifact import CORPUS, DATASET, TOKENIZER
from gpt2_contracts.corpus import CorpusCounts
from gpt2_tokenizer.corpus.reading import read_batches
from gpt2_tokenizer.corpus.selection import (
    DEFAULT_SAMPLE_BYTES,
    DEFAULT_VALIDATION_FRACTION,
    hash_fractions,
    min_sample_fraction,
)
from gpt2_tokenizer.dataset import pipeline
from gpt2_tokenizer.dataset.local import limit_library_threads
from gpt2_tokenizer.settings import TokenizerSettings
from gpt2_tokenizer.vocabulary.download import TokenizerDownload, download_url, is_download
from gpt2_tokenizer.vocabulary.training import DEFAULT_MIN_FREQUENCY, DEFAULT_VOCABULARY, train_vocabulary

Context = JobContext[TokenizerSettings]
Outputs = Sequence[artifact_pb2.Artifact]


def train_tokenizer(request: pb.TrainTokenizerRequest, context: Context) -> Outputs:
    """Trains a tokenizer on a corpus."""
    made = context.committed(TOKENIZER, TOKENIZER)
    return [output(TOKENIZER, made or _train(request, context))]


def import_tokenizer(request: pb.ImportTokenizerRequest, context: Context) -> Outputs:
    """Imports an existing tokenizer."""
    made = context.committed(TOKENIZER, TOKENIZER)
    if made is None:
        context.report("importing", 0, 1, "tokenizers")
        folder, source = _fetched(request.uri, context)
        made = _commit(context, import_vocabulary(folder), [], source)
        context.report("importing", 1, 1, "tokenizers")
    return [output(TOKENIZER, made)]


def encode_corpus(request: pb.EncodeCorpusRequest, context: Context) -> Outputs:
    """Encodes a corpus."""
    made = context.committed(DATASET, DATASET)
    if made is None:
        corpus = context.open("corpus_uri", request.corpus_uri, CORPUS)
        tokenizer = context.open("tokenizer_uri", request.tokenizer_uri, TOKENIZER, verify=True)
        fraction = request.validation_fraction or DEFAULT_VALIDATION_FRACTION
        beam = tuple(request.beam_options) if request.engine == pb.ENGINE_BEAM else None
        options = pipeline.EncodingOptions(validation_fraction=fraction, beam_options=beam)
        made = pipeline.write_dataset(context, corpus, tokenizer, options)
    return [output(DATASET, made)]


def _train(request: pb.TrainTokenizerRequest, context: Context) -> Artifact:
    corpus = context.open("corpus_uri", request.corpus_uri, CORPUS)
    limit_library_threads(context.settings.encode_threads)
    min_fraction = min_sample_fraction(corpus, request.sample_bytes or DEFAULT_SAMPLE_BYTES, context.check_cancelled)
    vocabulary = train_vocabulary(
        lambda: _sampled_texts(corpus, min_fraction, context),
        request.vocabulary_size or DEFAULT_VOCABULARY,
        request.min_frequency or DEFAULT_MIN_FREQUENCY,
        request.special_tokens,
    )
    return _commit(context, vocabulary, [corpus])


def _sampled_texts(corpus: Artifact, min_fraction: float, context: Context) -> Iterator[str]:
    """Yields the texts to train on; reports progress and checks for cancellation between batches."""
    total = CorpusCounts.from_counts(corpus.manifest.counts).documents
    for batch in read_batches(corpus):
        context.check_cancelled()
        context.report("counting", batch.begin, total, "documents")
        yield from (batch.only(hash_fractions(batch.encoded()) >= min_fraction) if min_fraction else batch).texts
    context.report("counting", total, total, "documents")
    context.report("merging")


def _fetched(uri: str, context: Context) -> tuple[str, str]:
    """Returns the folder or file to import, downloaded where its URI is remote, and the URI of its origin."""
    if uri.startswith(SCHEME):
        return _from_hub(HubAddress.parse(uri), context)
    if not is_download(uri):
        return context.require_allowed("uri", uri), uri
    settings = context.settings
    source = TokenizerDownload(
        url=download_url(uri, settings),
        allowed=settings.download_urls,
        folder=context.work / "download",
        timeout_seconds=settings.download_timeout_seconds,
        check_cancelled=context.check_cancelled,
        known_sha256=openai.TOKENIZER_SHA256 if uri == openai.TOKENIZER_NAME else {},
    )
    return source.run().as_uri(), uri


def _hub_files(model: HubAddress, names: Collection[str]) -> Collection[str]:
    if not (found := TOKENIZER_FILES.intersection(names)):
        raise NotFound(f"uri: {model.root} has no tokenizer's file, such as tokenizer.json: name another model")
    return found


def _from_hub(model: HubAddress, context: Context) -> tuple[str, str]:
    context.require_allowed("uri", model.root)
    from gpt2_common.hub_download import HubDownload

    download = HubDownload(
        address=model,
        cache=context.work / "hub",
        timeout_seconds=context.settings.download_timeout_seconds,
        choose=partial(_hub_files, model),
        on_progress=lambda _done, _all: context.check_cancelled(),
    )
    folder, commit = download.run()
    return folder.as_uri(), f"{model.root}@{commit}"


def _commit(
    context: Context, vocabulary: Vocabulary, parents: Sequence[Artifact], source: str | None = None
) -> Artifact:
    context.check_cancelled()
    with context.create(TOKENIZER, TOKENIZER, parents) as writer:
        return commit_vocabulary(writer, vocabulary, source)
