"""Turns a corpus into a dataset artifact: reads documents in order, encodes them in batches, writes each split."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_common.artifacts import Artifact
from gpt2_common.errors import FailedPrecondition
from gpt2_common.jobs.context import JobContext
from gpt2_tokenizer.corpus.reading import read_documents
from gpt2_tokenizer.dataset.checkpoint import Checkpoint
from gpt2_tokenizer.dataset.shards import SplitState, SplitWriter, token_type
from gpt2_tokenizer.dataset.split import SPLITS, TRAIN, VALIDATION, split_of
from gpt2_tokenizer.encoder import Encoder
from gpt2_tokenizer.settings import TokenizerSettings
from gpt2_tokenizer.vocabulary.files import FILES, read_vocabulary

OUTPUT = "dataset"
_BATCH_CHARACTERS = 1 << 20
_BATCH_DOCUMENTS = 1024


@dataclass(frozen=True, slots=True)
class _Document:
    number: int
    split: str
    text: str


def write_dataset(
    context: JobContext[TokenizerSettings], corpus: Artifact, tokenizer: Artifact, validation_fraction: float
) -> Artifact:
    """Encodes a corpus and commits the dataset.

    Args:
        context: The job.
        corpus: What to encode.
        tokenizer: What to encode it with.
        validation_fraction: Share of documents for validation, over 0 and under 1.

    Raises:
        FailedPrecondition: One of the splits would be empty.
    """
    vocabulary = read_vocabulary(tokenizer)
    with context.create(OUTPUT, "dataset", [corpus, tokenizer]) as writer:
        key = f"{context.identity.request_digest} {corpus.digest} {tokenizer.digest}"
        checkpoint = Checkpoint.load(context.work, writer.folder, key)
        _write_shards(context, corpus, Encoder(vocabulary), validation_fraction, checkpoint, writer.folder)
        _require_both(checkpoint.splits, validation_fraction)
        _copy_tokenizer(tokenizer, writer.folder)
        facts = {
            "vocabulary_size": vocabulary.size,
            "end_token_id": vocabulary.end_token_id,
            "dtype": np.dtype(token_type(vocabulary.size)).name,
            **{name: _counts(state) for name, state in checkpoint.splits.items()},
            "tokenizer_digest": tokenizer.digest,
            "tokenizer_fingerprint": vocabulary.fingerprint,
            "corpus_digest": corpus.digest,
        }
        (writer.folder / "dataset.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        return writer.commit(_artifact_counts(checkpoint.splits), {"tokenizer_fingerprint": vocabulary.fingerprint})


def _write_shards(
    context: JobContext[TokenizerSettings],
    corpus: Artifact,
    encoder: Encoder,
    validation_fraction: float,
    checkpoint: Checkpoint,
    folder: Path,
) -> None:
    kind, size = token_type(encoder.vocabulary_size), context.settings.dataset_shard_bytes
    writers = {split: SplitWriter(folder, split, kind, size, checkpoint.splits[split]) for split in SPLITS}
    total = corpus.manifest.counts.get("documents", 0)
    context.report("encoding", checkpoint.next_document, total, "documents")
    for batch in _batches(corpus, validation_fraction, checkpoint):
        context.check_cancelled()
        for document, token_ids in zip(batch, encoder.encode_batch([item.text for item in batch]), strict=True):
            if writers[document.split].add(document.number, token_ids, encoder.end_token_id):
                checkpoint.save(context.work)
        metrics = {f"{split}_tokens": float(writer.tokens) for split, writer in writers.items()}
        context.report("encoding", batch[-1].number + 1, total, "documents", metrics)
    for writer in writers.values():
        writer.finish_shard()


def _batches(corpus: Artifact, validation_fraction: float, checkpoint: Checkpoint) -> Iterator[list[_Document]]:
    """Yields the documents that no finished shard holds, in batches of bounded size."""
    # Taken now: the states move on while this goes on.
    begins = {split: state.next_document for split, state in checkpoint.splits.items()}
    batch: list[_Document] = []
    characters = 0
    for number, text in read_documents(corpus, checkpoint.next_document):
        split = split_of(text, validation_fraction)
        if number < begins[split]:
            continue
        batch.append(_Document(number, split, text))
        characters += len(text)
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _require_both(splits: dict[str, SplitState], validation_fraction: float) -> None:
    documents = sum(state.documents for state in splits.values())
    for split, advice in ((TRAIN, "lower"), (VALIDATION, "raise")):
        if not splits[split].documents:
            raise FailedPrecondition(
                f"none of the {documents} documents fell to {split} with validation_fraction {validation_fraction:g} "
                f"(a hash of each text decides): {advice} validation_fraction, or use a corpus of more documents"
            )


def _copy_tokenizer(tokenizer: Artifact, folder: Path) -> None:
    target = folder / "tokenizer"
    target.mkdir(exist_ok=True)
    for name in FILES:
        shutil.copyfile(tokenizer.folder / name, target / name)


def _counts(state: SplitState) -> dict[str, Any]:
    return {"tokens": state.tokens, "documents": state.documents}


def _artifact_counts(splits: dict[str, SplitState]) -> dict[str, float]:
    train, validation = splits[TRAIN], splits[VALIDATION]
    return {
        "tokens": train.tokens + validation.tokens,
        "train_tokens": train.tokens,
        "validation_tokens": validation.tokens,
        "documents": train.documents + validation.documents,
    }
