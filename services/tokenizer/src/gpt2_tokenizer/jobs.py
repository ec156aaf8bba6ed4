"""The tokenizer's jobs: what runs in a child process for each start call."""

from collections.abc import Iterator, Sequence

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.tokenizer.v1 import tokenizer_service_pb2 as pb
from gpt2_common.artifacts import Artifact
from gpt2_common.jobs.context import JobContext, output
from gpt2_common.jobs.definition import JobKind
from gpt2_tokenizer.corpus.reading import read_documents
from gpt2_tokenizer.dataset import encoding
from gpt2_tokenizer.dataset.split import DEFAULT_VALIDATION_FRACTION
from gpt2_tokenizer.settings import TokenizerSettings
from gpt2_tokenizer.training import DEFAULT_MIN_FREQUENCY, DEFAULT_VOCABULARY, train_vocabulary
from gpt2_tokenizer.vocabulary.files import write_vocabulary
from gpt2_tokenizer.vocabulary.importing import import_vocabulary
from gpt2_tokenizer.vocabulary.vocabulary import Vocabulary

Context = JobContext[TokenizerSettings]
Outputs = Sequence[artifact_pb2.Artifact]

_TOKENIZER = "tokenizer"


def train_tokenizer(request: pb.TrainTokenizerRequest, context: Context) -> Outputs:
    """Trains a tokenizer on a corpus."""
    made = context.committed(_TOKENIZER, _TOKENIZER)
    return [output(_TOKENIZER, made or _train(request, context))]


def import_tokenizer(request: pb.ImportTokenizerRequest, context: Context) -> Outputs:
    """Takes an existing tokenizer over."""
    made = context.committed(_TOKENIZER, _TOKENIZER)
    if made is None:
        context.report("importing", 0, 1, "tokenizers")
        vocabulary = import_vocabulary(context.require_allowed("uri", request.uri))
        made = _commit(context, vocabulary, [])
        context.report("importing", 1, 1, "tokenizers")
    return [output(_TOKENIZER, made)]


def encode_corpus(request: pb.EncodeCorpusRequest, context: Context) -> Outputs:
    """Encodes a corpus."""
    made = context.committed(encoding.OUTPUT, "dataset")
    if made is None:
        corpus = context.open("corpus_uri", request.corpus_uri, "corpus")
        tokenizer = context.open("tokenizer_uri", request.tokenizer_uri, _TOKENIZER, verify=True)
        fraction = request.validation_fraction or DEFAULT_VALIDATION_FRACTION
        made = encoding.write_dataset(context, corpus, tokenizer, fraction)
    return [output(encoding.OUTPUT, made)]


def _train(request: pb.TrainTokenizerRequest, context: Context) -> Artifact:
    corpus = context.open("corpus_uri", request.corpus_uri, "corpus")
    size = request.vocabulary_size or DEFAULT_VOCABULARY
    vocabulary = train_vocabulary(_watched(corpus, context), size, request.min_frequency or DEFAULT_MIN_FREQUENCY)
    return _commit(context, vocabulary, [corpus])


def _watched(corpus: Artifact, context: Context) -> Iterator[str]:
    """Yields the texts, and looks after progress and cancellation."""
    total = corpus.manifest.counts.get("documents", 0)
    for number, text in read_documents(corpus):
        context.check_cancelled()
        context.report("counting", number, total, "documents")
        yield text
    context.report("counting", total, total, "documents")
    context.report("merging")


def _commit(context: Context, vocabulary: Vocabulary, parents: Sequence[Artifact]) -> Artifact:
    context.check_cancelled()
    with context.create(_TOKENIZER, _TOKENIZER, parents) as writer:
        write_vocabulary(vocabulary, writer.folder)
        properties = {"fingerprint": vocabulary.fingerprint, "end_token_id": str(vocabulary.end_token_id)}
        return writer.commit({"vocabulary": vocabulary.size}, properties)


TRAIN_TOKENIZER = JobKind(
    name="TrainTokenizer",
    request=pb.TrainTokenizerRequest,
    function="gpt2_tokenizer.jobs:train_tokenizer",
    settings=TokenizerSettings,
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
)
