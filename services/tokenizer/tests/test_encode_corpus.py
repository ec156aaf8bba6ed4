"""Corpora become datasets: every byte comes back, whatever happened on the way."""

import base64
import json
import random
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf import json_format

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.tokenizer.v1 import tokenizer_service_pb2 as pb
from gpt2_common.errors import DataLoss, FailedPrecondition, JobCancelled
from gpt2_common.jobs.context import Interruption
from gpt2_common.vocabulary.files import read_vocabulary, write_vocabulary
from gpt2_common.vocabulary.vocabulary import Vocabulary
from gpt2_tokenizer.corpus.reading import read_batches
from gpt2_tokenizer.corpus.selection import hash_fractions
from gpt2_tokenizer.encoding.encoder import Encoder
from gpt2_tokenizer.jobs import encode_corpus, import_tokenizer, train_tokenizer


@pytest.fixture
def tokenizer_uri(small_vocabulary, store):
    with store.create("small", "tokenizer", "tokenizer", {}) as writer:
        write_vocabulary(small_vocabulary, writer.folder)
        return writer.commit().uri


@pytest.fixture
def openai_uri(openai_folder, tmp_path, make_context):
    shutil.copytree(openai_folder, tmp_path / "given" / "openai")
    request = pb.ImportTokenizerRequest(uri=(tmp_path / "given" / "openai").as_uri())
    [output] = import_tokenizer(request, make_context("import"))
    return output.uri


@pytest.fixture
def encode(open_dataset, tokenizer_uri, make_context):
    def run(corpus_uri, context=None, fraction=0.3, tokenizer=tokenizer_uri):
        request = pb.EncodeCorpusRequest(corpus_uri=corpus_uri, tokenizer_uri=tokenizer, validation_fraction=fraction)
        [output] = encode_corpus(request, context or make_context())
        return open_dataset(output)

    return run


@pytest.fixture
def many_texts(samples):
    chooser = random.Random(7)
    words = [word for text in samples for word in text.split(" ")]
    return [f"{n} " + " ".join(chooser.choices(words, k=chooser.randint(1, 40))) for n in range(2000)]


def test_every_byte_of_the_corpus_comes_back(make_corpus, encode, openai_encoder, openai_uri, samples):
    texts = [f"{n}{text}" for n in range(5) for text in samples]
    dataset = encode(make_corpus(texts), tokenizer=openai_uri)
    for split in ("train", "validation"):
        decoded = [openai_encoder.decode(ids).decode() for ids in dataset.documents(split)]
        expected = [text for text in texts if (hash_fractions([text.encode()])[0] < 0.3) == (split == "validation")]
        assert decoded == expected
        assert len(decoded) > 5


def test_the_end_token_is_after_each_document_and_nowhere_else(make_corpus, encode, small_vocabulary):
    texts = ["<|endoftext|>", "a<|endoftext|>b", *(f"<|endoftext|>{n}" for n in range(20))]
    dataset = encode(make_corpus(texts))
    tokens = np.concatenate([*dataset.shards("train"), *dataset.shards("validation")])
    assert (tokens == small_vocabulary.end_token_id).sum() == len(texts)


def test_dataset_json_and_counts_say_what_is_in_it(make_corpus, encode, store, openai_uri, many_texts):
    corpus_uri = make_corpus(many_texts)
    dataset = encode(corpus_uri, tokenizer=openai_uri)
    tokens = {split: sum(map(len, dataset.shards(split))) for split in ("train", "validation")}
    documents = {split: len(dataset.documents(split)) for split in ("train", "validation")}
    _, tokenizer = store.read_manifest("", openai_uri, "tokenizer")
    _, corpus = store.read_manifest("", corpus_uri, "corpus")
    assert dataset.facts == {
        "vocabulary_size": 50257,
        "end_token": "<|endoftext|>",
        "end_token_id": 50256,
        "dtype": "uint16",
        **{split: {"tokens": tokens[split], "documents": documents[split]} for split in tokens},
        "split_hash": "xxh3_64",
        "tokenizer_digest": tokenizer.digest,
        "tokenizer_fingerprint": tokenizer.properties["fingerprint"],
        "corpus_digest": corpus.digest,
    }
    assert dataset.counts == {
        "tokens": sum(tokens.values()),
        "train_tokens": tokens["train"],
        "validation_tokens": tokens["validation"],
        "documents": len(many_texts),
    }
    manifest = json.loads((dataset.folder / "manifest.json").read_text())
    assert [parent["kind"] for parent in manifest["parents"]] == ["corpus", "tokenizer"]
    names = {path.name for path in (dataset.folder / "tokenizer").iterdir()}
    assert names == {"tokenizer.json", "encoder.json", "vocab.bpe"}


def test_shards_are_one_dimensional_and_end_with_a_document(
    make_corpus, encode, make_context, many_texts, small_vocabulary
):
    dataset = encode(make_corpus(many_texts), make_context(dataset_shard_bytes=20_000))
    shards = dataset.shards("train")
    assert len(shards) > 3
    for shard in shards:
        assert (shard.dtype, shard.ndim, shard[-1]) == (np.uint16, 1, small_vocabulary.end_token_id)
    assert all(shard.nbytes >= 20_000 for shard in shards[:-1])


def test_a_large_vocabulary_has_tokens_of_32_bits(store, make_corpus, encode, openai_vocabulary):
    extra = {f"Zq{n:06d}": 50257 + n for n in range(20_000)}
    large = Vocabulary.from_parts({**openai_vocabulary.ids, **extra}, openai_vocabulary.merges)
    with store.create("large", "tokenizer", "tokenizer", {}) as writer:
        write_vocabulary(large, writer.folder)
        uri = writer.commit().uri
    dataset = encode(make_corpus([f"text {n}" for n in range(20)]), tokenizer=uri)
    assert dataset.shards("train")[0].dtype == np.uint32
    assert dataset.facts["dtype"] == "uint32"


def test_the_split_depends_on_each_text_alone(make_corpus, encode, make_context, many_texts):
    forward = encode(make_corpus(many_texts, "forward"), make_context("a"))
    backward = encode(make_corpus(many_texts[::-1], "backward"), make_context("b"))
    assert forward.documents("validation") == backward.documents("validation")[::-1]
    fraction = forward.facts["validation"]["documents"] / len(many_texts)
    assert 0.27 < fraction < 0.33


def test_the_default_validation_fraction_is_a_twentieth(make_corpus, encode, many_texts):
    dataset = encode(make_corpus(many_texts), fraction=0)
    assert 0.03 < dataset.facts["validation"]["documents"] / len(many_texts) < 0.07


@pytest.mark.parametrize(("fraction", "split", "advice"), [(1e-9, "validation", "raise"), (1 - 1e-9, "train", "lower")])
def test_a_split_without_documents_is_refused(make_corpus, encode, fraction, split, advice):
    with pytest.raises(FailedPrecondition) as error:
        encode(make_corpus(["one", "two"]), fraction=fraction)
    assert f"none of the 2 documents fell to {split} with validation_fraction" in error.value.message
    assert f"{advice} validation_fraction" in error.value.message


def test_how_a_corpus_is_cut_into_files_changes_no_token(make_corpus, encode, make_context, many_texts):
    whole = encode(make_corpus(many_texts, "whole"), make_context("a"))
    cut = encode(make_corpus(many_texts, "cut", shard_documents=333, group_documents=50), make_context("b"))
    for split in ("train", "validation"):
        assert [shard.tolist() for shard in whole.shards(split)] == [shard.tolist() for shard in cut.shards(split)]


def test_a_cancelled_encoding_leaves_no_artifact(make_corpus, encode, make_context, many_texts):
    interruption = Interruption()
    context = make_context(on_progress=lambda _: interruption.cancel(), interruption=interruption)
    with pytest.raises(JobCancelled):
        encode(make_corpus(many_texts), context)
    assert context.committed("dataset", "dataset") is None


def test_a_corpus_that_is_no_parquet_is_data_loss(make_corpus, encode, store):
    with store.create("bad", "corpus", "corpus", {}) as writer:
        (writer.folder / "corpus-00000.parquet").write_bytes(b"PAR1 no")
        uri = writer.commit().uri
    with pytest.raises(DataLoss, match="make the corpus again"):
        encode(uri)


@pytest.mark.parametrize("content", ["{", "{}", '{"added_tokens": [], "model": {"vocab": {}, "merges": ["a b"]}}'])
def test_a_damaged_tokenizer_is_data_loss(make_corpus, encode, store, content):
    with store.create("bad", "tokenizer", "tokenizer", {}) as writer:
        (writer.folder / "tokenizer.json").write_text(content)
        uri = writer.commit().uri
    with pytest.raises(DataLoss, match="make the tokenizer again"):
        encode(make_corpus(["text"]), tokenizer=uri)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_texts_of_every_type_of_string_are_read_from_any_document_on(store, kind):
    texts = ["", "Straße", "<|endoftext|>", "日本", "a" * 1000]
    with store.create("typed", "corpus", "corpus", {}) as writer:
        pq.write_table(pa.table({"text": pa.array(texts).cast(kind)}), writer.folder / "corpus-00000.parquet")
        corpus = store.open("", writer.commit({"documents": len(texts)}).uri, "corpus")
    for begin in range(len(texts)):
        [batch] = read_batches(corpus, begin)
        assert (batch.begin, batch.texts) == (begin, texts[begin:])
        assert batch.size == sum(len(text.encode()) for text in texts[begin:])
        assert batch.only(np.arange(len(batch)) == 0).texts == texts[begin : begin + 1]


@pytest.mark.process
def test_reading_a_corpus_imports_nothing_slow(make_corpus, store):
    code = """
        import sys
        from pathlib import Path
        from gpt2_common.artifacts import ArtifactStore
        from gpt2_tokenizer.corpus.reading import read_batches
        root, uri = sys.argv[1:]
        corpus = ArtifactStore(root, [root], Path(root)).open("", uri, "corpus")
        assert [text for batch in read_batches(corpus) for text in batch.texts] == ["", "Straße"]
        assert not {"pandas", "pyarrow.compute"} & sys.modules.keys()
    """
    uri = make_corpus(["", "Straße"])
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), store.root, uri], check=True, timeout=60)


def spawn(corpus_uri, tokenizer_uri, environment, job_id="job"):
    request = pb.EncodeCorpusRequest(corpus_uri=corpus_uri, tokenizer_uri=tokenizer_uri, validation_fraction=0.1)
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2_common.jobs.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    task = {
        "service": "tokenizer",
        "job_id": job_id,
        "run_id": job_id,
        "attempt": 1,
        "request_digest": "digest",
        "lease_seconds": 600,
        "function": "gpt2_tokenizer.jobs:encode_corpus",
        "settings": "gpt2_tokenizer.settings:TokenizerSettings",
        "request_type": "gpt2.tokenizer.v1.tokenizer_service_pb2:EncodeCorpusRequest",
        "request": base64.b64encode(request.SerializeToString()).decode(),
    }
    process.stdin.write(json.dumps({"task": task}).encode() + b"\n")
    process.stdin.flush()
    return process


def finish(process, open_dataset):
    messages = [json.loads(line) for line in process.stdout]
    assert process.wait(60) == 0
    return open_dataset(json_format.ParseDict(messages[-1]["outputs"][0], artifact_pb2.Artifact()))


def kill_after_shards(process, state, shards):
    deadline = time.monotonic() + 60
    while not state.exists() or json.loads(state.read_text())["splits"]["train"]["shards"] < shards:
        assert process.poll() is None, "the job ended before it was to be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.wait(30)
    process.stdin.close()
    process.stdout.close()


@pytest.mark.process
def test_an_encoding_killed_twice_has_the_digest_of_one_that_was_not(
    make_corpus, tokenizer_uri, environment, settings, open_dataset, many_texts
):
    texts = [f"{copy} {text}" for copy in range(15) for text in many_texts]
    corpus_uri = make_corpus(texts, group_documents=500)
    state = Path(settings.artifact_root.removeprefix("file://")) / "job" / ".work" / "encode.json"
    for shards in (5, 40):
        kill_after_shards(spawn(corpus_uri, tokenizer_uri, environment), state, shards)
    killed = finish(spawn(corpus_uri, tokenizer_uri, environment), open_dataset)
    whole = finish(spawn(corpus_uri, tokenizer_uri, environment, "other"), open_dataset)
    assert killed.counts["documents"] == len(texts)
    assert killed.digest == whole.digest


def test_a_tokenizer_trained_on_a_corpus_encodes_it(make_corpus, encode, make_context, store, many_texts):
    corpus_uri = make_corpus(many_texts)
    request = pb.TrainTokenizerRequest(corpus_uri=corpus_uri, vocabulary_size=500)
    [output] = train_tokenizer(request, make_context("train"))
    assert output.counts["vocabulary"] == 500
    assert output.properties["end_token_id"] == "499"
    dataset = encode(corpus_uri, tokenizer=output.uri)
    encoder = Encoder(read_vocabulary(store.open("", output.uri, "tokenizer")))
    texts = sorted(
        encoder.decode(ids).decode() for split in ("train", "validation") for ids in dataset.documents(split)
    )
    assert texts == sorted(many_texts)


def test_training_can_be_cancelled(make_corpus, make_context, many_texts):
    interruption = Interruption()
    context = make_context(on_progress=lambda _: interruption.cancel(), interruption=interruption)
    with pytest.raises(JobCancelled):
        train_tokenizer(pb.TrainTokenizerRequest(corpus_uri=make_corpus(many_texts)), context)
