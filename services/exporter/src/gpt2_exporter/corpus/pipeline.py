"""The pipeline from a source of documents to a corpus artifact: read, prepare, drop duplicates, cut into shards, write.

Each stage is a generator over the one before it. Reading ahead is the source's thread, writing the shard writer's.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_common.artifacts import Artifact
from gpt2_common.durable import write_durable
from gpt2_common.errors import FailedPrecondition
from gpt2_common.jobs.context import JobContext
from gpt2_contracts.artifact import CORPUS
from gpt2_contracts.corpus import REJECTS_FILE, SNAPSHOT_PROPERTY, SUMMARY_FILE
from gpt2_exporter.corpus.duplicates import SeenTexts, drop_duplicates
from gpt2_exporter.corpus.preparation import PreparedBatch, prepare
from gpt2_exporter.corpus.resume_point import ResumePoint
from gpt2_exporter.corpus.shards import ShardWriter, cut_into_shards
from gpt2_exporter.corpus.source import Batch, TextSource
from gpt2_exporter.corpus.statistics import CorpusStatistics
from gpt2_exporter.rejects.limit import RejectLimit
from gpt2_exporter.settings import ExporterSettings


def write_corpus(
    context: JobContext[ExporterSettings],
    source: TextSource,
    limit: RejectLimit,
    options: pb.DocumentOptions,
    parents: Sequence[Artifact] = (),
) -> Artifact:
    """Writes every usable document of a source, and commits the corpus.

    Args:
        context: The job.
        source: The documents.
        limit: The limit on unusable documents.
        options: How documents are prepared, and which are left out.
        parents: The corpora that this one continues.

    Raises:
        FailedPrecondition: Too many documents are unusable, or there is none to write.
    """
    with context.create(CORPUS, CORPUS, parents) as writer:
        resume_point = ResumePoint.load(
            context.work, writer.folder, context.identity.request_digest, source.fingerprint
        )
        statistics = _write_shards(context, source, limit, options, resume_point, writer.folder)
        limit.check_fraction(statistics)
        if not statistics.read:
            raise FailedPrecondition(source.no_documents)
        if not statistics.documents:
            raise FailedPrecondition(
                f"not one document is usable: {statistics.describe_left_out()}: {limit.advice(statistics)}"
            )
        _write_reports(writer.folder, statistics, source)
        properties = {SNAPSHOT_PROPERTY: source.fingerprint, **source.properties}
        return writer.commit(statistics.counts().to_counts(), properties)


def _write_shards(
    context: JobContext[ExporterSettings],
    source: TextSource,
    limit: RejectLimit,
    options: pb.DocumentOptions,
    resume_point: ResumePoint,
    folder: Path,
) -> CorpusStatistics:
    """Runs the pipeline from the resume point to the end. Returns the statistics of the whole corpus."""
    statistics = resume_point.statistics
    with ExitStack() as stack:
        documents: Iterable[PreparedBatch] = prepare(_read(context, source, resume_point.resume_after), options)
        seen = stack.enter_context(SeenTexts(context.work, statistics.documents)) if options.drop_duplicates else None
        if seen is not None:
            documents = drop_duplicates(documents, seen)
        shards = stack.enter_context(ShardWriter(folder, resume_point.shards))

        def finish_shard(resume_token: str) -> None:
            if seen is not None:
                seen.save()
            reached = replace(resume_point, shards=shards.shards + 1, resume_after=resume_token)
            shards.finish_shard(partial(ResumePoint.save, context.work, reached.to_json()))

        resume_token = ""
        for part in cut_into_shards(documents, context.settings.corpus_shard_bytes):
            statistics.add(part.documents)
            # Before the resume point: a retry must be able to succeed once rejected documents are corrected.
            limit.check(statistics)
            shards.write(part)
            resume_token = part.documents.resume_token
            if part.ends_shard:
                finish_shard(resume_token)
        if not shards.is_empty:
            finish_shard(resume_token)
    context.report("reading", source.total, source.total, source.unit)
    return statistics


def _read(context: JobContext[ExporterSettings], source: TextSource, resume_after: str | None) -> Iterator[Batch]:
    """Yields the batches of a source; reports progress and checks for cancellation between them."""
    context.report("reading", 0, source.total, source.unit)
    for batch in source.batches(resume_after):
        context.check_cancelled()
        yield batch
        context.report("reading", batch.progress, source.total, source.unit)


def _write_reports(folder: Path, statistics: CorpusStatistics, source: TextSource) -> None:
    rejects = "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in statistics.sample)
    write_durable(folder / REJECTS_FILE, rejects)
    summary = json.dumps({**statistics.summary(), **source.summary}, indent=2, ensure_ascii=False)
    write_durable(folder / SUMMARY_FILE, summary + "\n")
