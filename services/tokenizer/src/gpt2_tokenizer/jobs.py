"""The tokenizer's jobs: what runs in a child process for each start call."""

from collections.abc import Collection, Iterator, Sequence
from functools import partial

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.tokenizer.v1 import tokenizer_service_pb2 as pb
from gpt2_common.artifacts import Artifact
from gpt2_common.errors import NotFound
from gpt2_common.hub import SCHEME, HubAddress
from gpt2_common.jobs.context import JobContext, output
from gpt2_common.jobs.definition import JobKind
from gpt2_common.vocabulary.artifact import OPENAI, OPENAI_SHA256, TOKENIZER, commit_vocabulary
from gpt2_common.vocabulary.importing import TOKENIZER_FILES, import_vocabulary
from gpt2_common.vocabulary.vocabulary import Vocabulary
from gpt2_tokenizer.cores import available_cores
from gpt2_tokenizer.corpus.reading import read_batches
from gpt2_tokenizer.corpus.sampling import DEFAULT_SAMPLE_BYTES, least_share_of
from gpt2_tokenizer.dataset import encoding
from gpt2_tokenizer.dataset.local import limit_library_threads
from gpt2_tokenizer.dataset.split import DEFAULT_VALIDATION_FRACTION, shares
from gpt2_tokenizer.download import TokenizerDownload, download_url, is_download
from gpt2_tokenizer.settings import TokenizerSettings
from gpt2_tokenizer.training import DEFAULT_MIN_FREQUENCY, DEFAULT_VOCABULARY, train_vocabulary

Context = JobContext[TokenizerSettings]
Outputs = Sequence[artifact_pb2.Artifact]


def train_tokenizer(request: pb.TrainTokenizerRequest, context: Context) -> Outputs:
    """Trains a tokenizer on a corpus."""
    made = context.committed(TOKENIZER, TOKENIZER)
    return [output(TOKENIZER, made or _train(request, context))]


def import_tokenizer(request: pb.ImportTokenizerRequest, context: Context) -> Outputs:
    """Takes an existing tokenizer over."""
    made = context.committed(TOKENIZER, TOKENIZER)
    if made is None:
        context.report("importing", 0, 1, "tokenizers")
        folder, source = _fetched(request.uri, context)
        made = _commit(context, import_vocabulary(folder), [], source)
        context.report("importing", 1, 1, "tokenizers")
    return [output(TOKENIZER, made)]


def encode_corpus(request: pb.EncodeCorpusRequest, context: Context) -> Outputs:
    """Encodes a corpus."""
    made = context.committed(encoding.OUTPUT, "dataset")
    if made is None:
        corpus = context.open("corpus_uri", request.corpus_uri, "corpus")
        tokenizer = context.open("tokenizer_uri", request.tokenizer_uri, TOKENIZER, verify=True)
        fraction = request.validation_fraction or DEFAULT_VALIDATION_FRACTION
        beam = tuple(request.beam_options) if request.engine == pb.ENGINE_BEAM else None
        options = encoding.EncodingOptions(validation_fraction=fraction, beam_options=beam)
        made = encoding.write_dataset(context, corpus, tokenizer, options)
    return [output(encoding.OUTPUT, made)]


def _train(request: pb.TrainTokenizerRequest, context: Context) -> Artifact:
    corpus = context.open("corpus_uri", request.corpus_uri, "corpus")
    limit_library_threads(context.settings.encode_workers or available_cores())
    least_share = least_share_of(corpus, request.sample_bytes or DEFAULT_SAMPLE_BYTES, context.check_cancelled)
    vocabulary = train_vocabulary(
        lambda: _watched(corpus, least_share, context),
        request.vocabulary_size or DEFAULT_VOCABULARY,
        request.min_frequency or DEFAULT_MIN_FREQUENCY,
        request.special_tokens,
    )
    return _commit(context, vocabulary, [corpus])


def _watched(corpus: Artifact, least_share: float, context: Context) -> Iterator[str]:
    """Yields the texts to learn from, and looks after progress and cancellation."""
    total = corpus.manifest.counts.get("documents", 0)
    for batch in read_batches(corpus):
        context.check_cancelled()
        context.report("counting", batch.begin, total, "documents")
        yield from (batch.only(shares(batch.encoded()) >= least_share) if least_share else batch).texts
    context.report("counting", total, total, "documents")
    context.report("merging")


def _fetched(uri: str, context: Context) -> tuple[str, str]:
    """The folder or file to import, after a download where the request asks for one, and what it came from."""
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
        known_sha256=OPENAI_SHA256 if uri == OPENAI else {},
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


TRAIN_TOKENIZER = JobKind(
    name="TrainTokenizer",
    request=pb.TrainTokenizerRequest,
    function="gpt2_tokenizer.jobs:train_tokenizer",
    settings=TokenizerSettings,
    inputs={"corpus_uri": "corpus"},
)
IMPORT_TOKENIZER = JobKind(
    name="ImportTokenizer",
    request=pb.ImportTokenizerRequest,
    function="gpt2_tokenizer.jobs:import_tokenizer",
    settings=TokenizerSettings,
)
ENCODE_CORPUS = JobKind(
    name="EncodeCorpus",
    request=pb.EncodeCorpusRequest,
    function="gpt2_tokenizer.jobs:encode_corpus",
    settings=TokenizerSettings,
    inputs={"corpus_uri": "corpus", "tokenizer_uri": "tokenizer"},
)
