"""Datasets to compare recipes on, made by the exporter's and the tokenizer's own jobs: all of a text, and half of it.

Half has the same tokenizer and the same validation split, so that losses of both compare.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.exporter.v1 import exporter_service_pb2
from gpt2.tokenizer.v1 import tokenizer_service_pb2
from gpt2_common.artifacts import Artifact, ArtifactWriter
from gpt2_common.jobs.context import Interruption, JobContext, JobIdentity
from gpt2_contracts.artifact import DATASET
from gpt2_contracts.dataset import TRAIN, DatasetDescription, SplitSize, shard_name, shard_pattern
from gpt2_exporter.jobs import import_files
from gpt2_exporter.settings import ExporterSettings
from gpt2_orchestration.demo.documentation import documents
from gpt2_tokenizer.jobs import encode_corpus, train_tokenizer
from gpt2_tokenizer.settings import TokenizerSettings

VALIDATION_FRACTION = 0.05
_PIECE_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class Corpus:
    """Two datasets of a text, by the URIs of their artifacts."""

    name: str
    all: str
    half: str
    train_tokens: int
    """Of all."""
    tokenizer: str
    """URI of the artifact."""


def build_corpus(name: str, texts: Iterable[str], folder: Path, vocabulary_size: int) -> Corpus:
    """Encodes texts as datasets, or finds those that an earlier run has made.

    Args:
        name: Name of the text.
        texts: Documents; read only where there are no datasets yet.
        folder: Where the datasets are kept.
        vocabulary_size: Of the tokenizer, which is trained on the texts.
    """
    root = folder / f"{name}-{vocabulary_size}"
    done = root / "corpus.json"
    if not done.exists():
        shutil.rmtree(root, ignore_errors=True)
        (root / "files").mkdir(parents=True)
        with (root / "files" / "texts.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        whole, tokenizer = _encode(root, vocabulary_size)
        made = {
            "all": whole.uri,
            "half": _half_of(whole, root / "half").uri,
            "train_tokens": whole.read(DatasetDescription).train.tokens,
            "tokenizer": tokenizer,
        }
        done.write_text(json.dumps(made), encoding="utf-8")
    return Corpus(name=name, **json.loads(done.read_text(encoding="utf-8")))


def documentation_texts(megabytes: float) -> Iterator[str]:
    """The documentation of Python and of installed packages, which every machine with this checkout has."""
    size = 0
    for document in documents(round(megabytes * 1e6)):
        size += len(document.text.encode())
        yield document.text
        if size >= megabytes * 1e6:
            return


def texts_of_folder(folder: Path) -> Iterator[str]:
    """The texts of a folder's files, or the `text` of each line where those are JSON, cut at empty lines."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_text(encoding="utf-8")
        if content.startswith("{"):
            for line in content.splitlines():
                yield from _pieces(json.loads(line)["text"])
        else:
            yield from _pieces(content)


def _pieces(text: str) -> Iterator[str]:
    """Whole paragraphs, of so many characters together."""
    piece: list[str] = []
    for paragraph in text.split("\n\n"):
        piece.append(paragraph)
        if sum(map(len, piece)) >= _PIECE_CHARACTERS:
            yield "\n\n".join(piece)
            piece = []
    if any(map(str.strip, piece)):
        yield "\n\n".join(piece)


def _encode(root: Path, vocabulary_size: int) -> tuple[Artifact, str]:
    """Returns the dataset, and the URI of its tokenizer."""
    artifacts = (root / "artifacts").as_uri()
    settings = TokenizerSettings(artifact_root=artifacts)
    files = exporter_service_pb2.ImportFilesRequest(uris=[(root / "files").as_uri()])
    corpus = _run(files, import_files, ExporterSettings(artifact_root=artifacts, allowed_roots=root.as_uri()))
    train = tokenizer_service_pb2.TrainTokenizerRequest(corpus_uri=corpus, vocabulary_size=vocabulary_size)
    tokenizer = _run(train, train_tokenizer, settings)
    encode = tokenizer_service_pb2.EncodeCorpusRequest(
        corpus_uri=corpus, tokenizer_uri=tokenizer, validation_fraction=VALIDATION_FRACTION
    )
    return _context("half", settings).open("dataset", _run(encode, encode_corpus, settings), DATASET), tokenizer


def _half_of(whole: Artifact, target: Path) -> Artifact:
    """Commits a dataset with the documents of the first half of the train split, cut where one ends."""
    shutil.copytree(whole.folder, target.with_suffix(".part"), dirs_exist_ok=True)
    description = whole.read(DatasetDescription)
    shards = [np.load(path) for path in sorted(whole.folder.glob(shard_pattern(TRAIN)))]
    for path in target.with_suffix(".part").glob(shard_pattern(TRAIN)):
        path.unlink()
    tokens = np.concatenate(shards)
    ends = np.flatnonzero(tokens == description.end_token_id) + 1
    end = int(ends[np.searchsorted(ends, len(tokens) // 2)])
    np.save(target.with_suffix(".part") / shard_name(TRAIN, 0), tokens[:end])
    documents_kept = int(np.searchsorted(ends, end)) + 1
    half = replace(description, train=SplitSize(tokens=end, documents=documents_kept))
    (target.with_suffix(".part") / DatasetDescription.FILE).write_text(half.to_text(), encoding="utf-8")
    writer = ArtifactWriter(target.as_uri(), DATASET, target.with_suffix(".part"), {}, [whole])
    return writer.commit(half.to_counts(), half.to_properties())


def _run(request: Any, function: Callable[..., Any], settings: Any) -> str:
    """Does a job in this process. Returns the URI of its output."""
    [made] = function(request, _context(type(request).__name__, settings))
    return str(made.uri)


def _context(job_id: str, settings: Any) -> JobContext[Any]:
    identity = JobIdentity(service="benchmark", job_id=job_id, run_id="benchmark", request_digest=job_id, attempt=1)
    return JobContext(identity, settings, lambda _: None, Interruption())
