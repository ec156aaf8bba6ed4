"""The dataset is the same whoever encodes: any number of threads, the slow library, or Apache Beam."""

import io
import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from request_problems import request_problems

from gpt2.tokenizer.v1 import tokenizer_service_pb2 as pb
from gpt2_common.errors import DataLoss, FailedPrecondition, JobCancelled
from gpt2_common.jobs.context import Interruption
from gpt2_tokenizer.dataset.beam_options import beam_option_problems
from gpt2_tokenizer.dataset.blocks import Block
from gpt2_tokenizer.dataset.shards import SplitState, SplitWriter
from gpt2_tokenizer.jobs import encode_corpus, import_tokenizer
from gpt2_tokenizer.settings import available_cores


@pytest.fixture
def tokenizer_uri(openai_folder, tmp_path, make_context):
    shutil.copytree(openai_folder, tmp_path / "given" / "openai")
    request = pb.ImportTokenizerRequest(uri=(tmp_path / "given" / "openai").as_uri())
    return import_tokenizer(request, make_context("import"))[0].uri


@pytest.fixture
def corpus_uri(make_corpus, samples):
    chooser = random.Random(3)
    texts = [f"{n} " + " ".join(chooser.choices(samples, k=chooser.randint(0, 9))) for n in range(1500)]
    texts[7] = ""
    texts[11] = "long " * 300_000
    texts[12] = "{1,a}" * 200_000
    return make_corpus(texts, shard_documents=700, group_documents=110)


@pytest.fixture
def encode(corpus_uri, tokenizer_uri, make_context):
    def run(name, engine=pb.ENGINE_UNSPECIFIED, beam_options=(), context=None, **changes):
        request = pb.EncodeCorpusRequest(
            corpus_uri=corpus_uri,
            tokenizer_uri=tokenizer_uri,
            validation_fraction=0.2,
            engine=engine,
            beam_options=beam_options,
        )
        return encode_corpus(request, context or make_context(name, dataset_shard_bytes=30_000, **changes))[0]

    return run


@pytest.fixture
def digest(encode):
    return encode("first", encode_workers=1).digest


@pytest.mark.long
def test_the_number_of_workers_changes_no_byte(encode, digest):
    assert [encode(f"w{workers}", encode_workers=workers).digest for workers in (2, 7)] == [digest] * 2


@pytest.mark.long
def test_the_slow_library_changes_no_byte(encode, digest, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastokens", None)
    assert encode("slow").digest == digest


@pytest.mark.process
def test_beam_changes_no_byte(encode, digest):
    assert encode("beam", pb.ENGINE_BEAM).digest == digest
    assert encode("direct", pb.ENGINE_BEAM, ["--runner=DirectRunner", "--direct_num_workers=1"]).digest == digest


@pytest.mark.process
def test_an_interrupted_beam_job_resumes(encode, digest, make_context, monkeypatch):
    interruption = Interruption()
    reports = []

    def on_progress(progress):
        reports.append(progress)
        if len(reports) == 2:
            interruption.cancel()

    context = make_context("beam", on_progress, interruption, dataset_shard_bytes=30_000)
    with pytest.raises(JobCancelled):
        encode("beam", pb.ENGINE_BEAM, context=context)
    assert encode("beam", pb.ENGINE_BEAM).digest == digest


@pytest.mark.process
def test_without_beam_the_error_names_the_package_to_install(encode, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(FailedPrecondition, match=r"install gpt2-tokenizer\[beam\]"):
        encode("beam", pb.ENGINE_BEAM)


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("--runner=FlinkRunner", ""),
        ("--flink_master=host:8081", ""),
        ("--environment_type=LOOPBACK", ""),
        ("--no_use_public_ips", ""),
        ("--no_use_public_ips=yes", "takes no value"),
        ("--region", "needs a value"),
        ("--runner=os.system", "must be one of DirectRunner"),
        ("--environment_type=PROCESS", "must be one of DOCKER"),
        ("--environment_config={}", "may not be set"),
        ("--setup_file=/tmp/setup.py", "may not be set"),
        ("--extra_package=x", "may not be set"),
        ("--service_account_email=x", "may not be set"),
        ("runner=DirectRunner", "must be an option written --name=value"),
        ("--runner DirectRunner", "must be an option written --name=value"),
        ("", "must not be empty"),
    ],
)
def test_beam_options_that_could_run_code_are_refused(option, problem):
    options = ["--runner=DirectRunner", option]
    request = pb.EncodeCorpusRequest(corpus_uri="file:///c", tokenizer_uri="file:///t", beam_options=options)
    found = request_problems(request, beam_option_problems(options))
    assert [field for field, _ in found] == (["beam_options[1]"] if problem else [])
    assert problem in "".join(text for _, text in found)


def test_a_corpus_with_nulls_or_without_texts_is_data_loss(store, tokenizer_uri, make_context):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, table in {"null": {"text": ["a", None]}, "none": {"words": ["a"]}, "number": {"text": [[1]]}}.items():
        with store.create(name, "corpus", "corpus", {}) as writer:
            pq.write_table(pa.table(table), writer.folder / "corpus-00000.parquet")
            uri = writer.commit().uri
        with pytest.raises(DataLoss, match="make the corpus again"):
            encode_corpus(pb.EncodeCorpusRequest(corpus_uri=uri, tokenizer_uri=tokenizer_uri), make_context(f"j{name}"))


@pytest.mark.parametrize("kind", [np.uint16, np.uint32])
@pytest.mark.parametrize("count", [1, 12_345])
def test_a_shard_is_what_numpy_would_save(tmp_path, kind, count):
    tokens = np.arange(count).astype(kind)
    writer = SplitWriter(tmp_path, "train", kind, 1 << 30, SplitState())
    for part in np.array_split(tokens, 5):
        if len(part):
            writer.add(Block(np.array([0]), np.array([len(part)]), part))
    writer.finish_shard()
    expected = io.BytesIO()
    np.save(expected, tokens)
    assert (tmp_path / "train-00000.npy").read_bytes() == expected.getvalue()


def test_a_shard_ends_with_the_document_that_fills_it(tmp_path):
    state = SplitState()
    writer = SplitWriter(tmp_path, "train", np.uint16, 20, state)
    block = Block(np.array([3, 5, 9, 10]), np.array([9, 10, 40, 41]), np.arange(41, dtype=np.uint16))
    assert writer.add(block)
    assert (state.shards, state.documents, state.tokens, state.next_document) == (2, 3, 40, 10)
    writer.finish_shard()
    sizes = [len(np.load(path)) for path in sorted(tmp_path.glob("*.npy"))]
    assert sizes == [10, 30, 1]


def test_cores_are_those_of_the_container(tmp_path):
    assert available_cores(tmp_path) == len(os.sched_getaffinity(0))
    for content, cores in (("100000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("nonsense", None)):
        (tmp_path / "cpu.max").write_text(content)
        assert available_cores(tmp_path) == (cores or len(os.sched_getaffinity(0)))


_PEAK = """
import resource, sys
from gpt2_common.jobs.context import Interruption, JobContext, JobIdentity
from gpt2.tokenizer.v1 import tokenizer_service_pb2 as pb
from gpt2_tokenizer.jobs import encode_corpus
from gpt2_tokenizer.settings import TokenizerSettings
identity = JobIdentity(service="tokenizer", job_id="peak", run_id="peak", request_digest="d", attempt=1)
context = JobContext(identity, TokenizerSettings(artifact_root=sys.argv[1]), lambda _: None, Interruption())
encode_corpus(pb.EncodeCorpusRequest(corpus_uri=sys.argv[2], tokenizer_uri=sys.argv[3]), context)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.process
def test_memory_does_not_grow_with_the_corpus(make_corpus, tokenizer_uri, settings):
    def peak(copies):
        texts = [f"{n} {n * 7919 % 9973} " + "some words of text " * 100 for n in range(2000)] * copies
        uri = make_corpus(texts, f"texts{copies}", shard_documents=2000, group_documents=500)
        command = [sys.executable, "-c", _PEAK, settings.artifact_root, uri, tokenizer_uri]
        return int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    assert peak(12) < peak(3) * 1.1
