"""The pipeline from a corpus to a dataset artifact: read, encode, split, write token shards.

Threads here or workers of Apache Beam encode; the bytes of the dataset are the same.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2_common.artifacts import Artifact, ArtifactWriter
from gpt2_common.errors import FailedPrecondition
from gpt2_common.jobs.context import JobContext
from gpt2_common.vocabulary.files import copy_vocabulary_files, read_vocabulary
from gpt2_common.vocabulary.vocabulary import Vocabulary
from gpt2_contracts.artifact import DATASET
from gpt2_contracts.corpus import CorpusCounts
from gpt2_contracts.dataset import SPLITS, TRAIN, VALIDATION, DatasetDescription, SplitSize
from gpt2_contracts.tokenizer import TOKENIZER_FOLDER
from gpt2_tokenizer.corpus.selection import SPLIT_HASH
from gpt2_tokenizer.dataset.beam import BeamRun, beam_blocks
from gpt2_tokenizer.dataset.blocks import Block, TokenType, token_type
from gpt2_tokenizer.dataset.local import limit_library_threads, local_blocks
from gpt2_tokenizer.dataset.resume_point import ResumePoint, ShardFinisher
from gpt2_tokenizer.dataset.shards import SplitState, SplitWriter
from gpt2_tokenizer.encoding.encoder import Encoder
from gpt2_tokenizer.settings import TokenizerSettings


@dataclass(frozen=True, kw_only=True)
class EncodingOptions:
    """How a corpus is encoded."""

    validation_fraction: float
    """Fraction of documents for validation, over 0 and under 1."""
    beam_options: tuple[str, ...] | None = None
    """Options of a Beam pipeline, such as `--runner=FlinkRunner`; None to encode on this machine."""


def write_dataset(
    context: JobContext[TokenizerSettings], corpus: Artifact, tokenizer: Artifact, options: EncodingOptions
) -> Artifact:
    """Encodes a corpus and commits the dataset.

    Args:
        context: The job.
        corpus: The corpus to encode.
        tokenizer: The tokenizer to encode it with.
        options: How to encode it.

    Raises:
        FailedPrecondition: One of the splits would be empty, or Beam is requested and not installed.
    """
    vocabulary = read_vocabulary(tokenizer)
    with context.create(DATASET, DATASET, [corpus, tokenizer]) as writer:
        key = f"{SPLIT_HASH} {context.identity.request_digest} {corpus.digest} {tokenizer.digest}"
        resume_point = ResumePoint.load(context.work, writer.folder, key)
        blocks = _blocks(context, corpus, vocabulary, options, resume_point)
        _write_shards(context, corpus, blocks, token_type(vocabulary.size), resume_point, writer)
        _require_both(resume_point.splits, options.validation_fraction)
        _copy_tokenizer(tokenizer, writer.folder)
        described = DatasetDescription(
            vocabulary_size=vocabulary.size,
            end_token=vocabulary.end_token,
            end_token_id=vocabulary.end_token_id,
            dtype=np.dtype(token_type(vocabulary.size)).name,
            train=_size(resume_point.splits[TRAIN]),
            validation=_size(resume_point.splits[VALIDATION]),
            split_hash=SPLIT_HASH,
            tokenizer_digest=tokenizer.digest,
            tokenizer_fingerprint=vocabulary.fingerprint,
            corpus_digest=corpus.digest,
        )
        (writer.folder / described.FILE).write_text(described.to_text(), encoding="utf-8")
        return writer.commit(described.to_counts(), described.to_properties())


def _blocks(
    context: JobContext[TokenizerSettings],
    corpus: Artifact,
    vocabulary: Vocabulary,
    options: EncodingOptions,
    resume_point: ResumePoint,
) -> Iterable[dict[str, Block]]:
    begins = {split: state.next_document for split, state in resume_point.splits.items()}
    if options.beam_options is not None:
        run = BeamRun(
            corpus=corpus,
            vocabulary=vocabulary,
            validation_fraction=options.validation_fraction,
            options=options.beam_options,
            staging=context.work / "beam",
        )
        return beam_blocks(run, begins, context.check_cancelled)
    workers = context.settings.encode_threads
    limit_library_threads(workers, callers=workers)
    return local_blocks(Encoder(vocabulary), corpus, options.validation_fraction, begins, workers)


def _write_shards(
    context: JobContext[TokenizerSettings],
    corpus: Artifact,
    blocks: Iterable[dict[str, Block]],
    kind: TokenType,
    resume_point: ResumePoint,
    writer: ArtifactWriter,
) -> None:
    size, states = context.settings.dataset_shard_bytes, resume_point.splits
    total = CorpusCounts.from_counts(corpus.manifest.counts).documents
    done = resume_point.next_document
    context.report("encoding", done, total, "documents")
    with ShardFinisher(writer, context.work) as finisher, ExitStack() as files:
        writers = {s: SplitWriter(writer.folder, s, kind, size, states[s], finisher.finish) for s in SPLITS}
        for split_writer in writers.values():
            files.callback(split_writer.close)
        for block in blocks:
            context.check_cancelled()
            finished = [writers[split].add(part) for split, part in block.items()]
            if any(finished):
                finisher.save(resume_point)
            done = max([done, *(int(part.numbers[-1]) + 1 for part in block.values() if len(part.numbers))])
            metrics = {f"{split}_tokens": float(split_writer.tokens) for split, split_writer in writers.items()}
            context.report("encoding", done, total, "documents", metrics)
        for split_writer in writers.values():
            split_writer.finish_shard()


def _require_both(splits: dict[str, SplitState], validation_fraction: float) -> None:
    documents = sum(state.documents for state in splits.values())
    for split, advice in ((TRAIN, "lower"), (VALIDATION, "raise")):
        if not splits[split].documents:
            raise FailedPrecondition(
                f"none of the {documents} documents fell to {split} with validation_fraction {validation_fraction:g} "
                f"(a hash of each text decides): {advice} validation_fraction, or use a corpus of more documents"
            )


def _copy_tokenizer(tokenizer: Artifact, folder: Path) -> None:
    target = folder / TOKENIZER_FOLDER
    target.mkdir(exist_ok=True)
    copy_vocabulary_files(tokenizer.folder, target)


def _size(state: SplitState) -> SplitSize:
    return SplitSize(tokens=state.tokens, documents=state.documents)
