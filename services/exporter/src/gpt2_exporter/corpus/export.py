"""Turns records into a corpus artifact: the loop that both kinds of jobs share."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from gpt2_common.artifacts import Artifact
from gpt2_common.durable import write_durable
from gpt2_common.errors import FailedPrecondition
from gpt2_common.jobs.context import JobContext
from gpt2_exporter.corpus.checkpoint import Checkpoint
from gpt2_exporter.corpus.record import BROKEN_TEXT, LARGEST_DOCUMENT, TOO_LARGE, Record, TextSource
from gpt2_exporter.corpus.shards import ShardWriter, shard_name
from gpt2_exporter.corpus.tally import Tally
from gpt2_exporter.settings import ExporterSettings

OUTPUT = "corpus"
_LOOK_UP_EVERY = 256


@dataclass(frozen=True, slots=True)
class RejectLimit:
    """How many documents may be unusable, and what the user can do where they are more."""

    max_rejected: int
    """Most of them; -1 for no limit."""
    advice: str
    """What to change in the request."""

    def check(self, tally: Tally) -> None:
        """Raises FailedPrecondition when too many were left out."""
        rejected = tally.rejects.total()
        if 0 <= self.max_rejected < rejected:
            raise FailedPrecondition(
                f"{rejected} of the first {tally.read} documents are unusable: {tally.explain_rejects()}; "
                f"max_rejected allows {self.max_rejected}: {self.advice}",
                rejected=str(rejected),
            )


def write_corpus(context: JobContext[ExporterSettings], source: TextSource, limit: RejectLimit) -> Artifact:
    """Writes every usable record of a source, and commits the corpus.

    Args:
        context: The job.
        source: Where the records come from.
        limit: When to give up.

    Raises:
        FailedPrecondition: Too many records are unusable, or all of them are.
    """
    with context.create(OUTPUT, "corpus") as writer:
        checkpoint = Checkpoint.load(context.work, writer.folder, context.identity.request_digest, source.fingerprint)
        tally = _write_shards(context, source, limit, checkpoint, writer.folder)
        if not tally.documents:
            raise FailedPrecondition(f"not one document is usable: {tally.explain_rejects()}: {limit.advice}")
        _write_reports(writer.folder, tally)
        return writer.commit(tally.counts(), {"snapshot": source.fingerprint})


def _write_shards(
    context: JobContext[ExporterSettings], source: TextSource, limit: RejectLimit, checkpoint: Checkpoint, folder: Path
) -> Tally:
    tally = checkpoint.tally
    usable = _usable(context, source, limit, checkpoint)
    first = next(usable, None)
    while first is not None:
        with ShardWriter(folder / shard_name(checkpoint.shards)) as shard:
            last = _fill(shard, first, usable, tally, context.settings.corpus_shard_bytes)
            # What a retry goes on from must not hold rejects that are over the limit: they may be mended by then.
            limit.check(tally)
            shard.finish()
        checkpoint.shards += 1
        checkpoint.after = source.encode_place(last.place)
        checkpoint.save(context.work)
        first = next(usable, None)
    return tally


def _fill(
    shard: ShardWriter, first: tuple[Record, int], usable: Iterator[tuple[Record, int]], tally: Tally, target: int
) -> Record:
    """Fills one shard. It reads no further than the last record in it, which it returns."""
    filled = 0
    for record, size in chain([first], usable):
        shard.add(record, size)
        tally.accept(size)
        filled += size
        if filled >= target:
            break
    return record


def _usable(
    context: JobContext[ExporterSettings], source: TextSource, limit: RejectLimit, checkpoint: Checkpoint
) -> Iterator[tuple[Record, int]]:
    """Yields the usable records, each with its bytes of UTF-8.

    Counts the others, and looks after progress, cancellation and the limit.
    """
    tally = checkpoint.tally
    context.report("reading", 0, source.total, source.unit)
    for record in source.records(checkpoint.after):
        size, reason = _measure(record)
        if reason:
            tally.reject(record.id, record.source, reason)
        if tally.read % _LOOK_UP_EVERY == 0:
            context.check_cancelled()
            limit.check(tally)
            context.report("reading", source.done(record.place, tally.read), source.total, source.unit)
        if not reason:
            yield record, size
    limit.check(tally)
    context.report("reading", source.total, source.total, source.unit)


def _measure(record: Record) -> tuple[int, str]:
    """Bytes of a record's text in UTF-8, and why it is unusable; that is empty when it is usable."""
    text = record.text
    if record.reason:
        return 0, record.reason
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError:
        # A lone surrogate: JSON can escape one, and UTF-8 has no bytes for it.
        return 0, BROKEN_TEXT
    return size, TOO_LARGE if size > LARGEST_DOCUMENT else ""


def _write_reports(folder: Path, tally: Tally) -> None:
    rejects = "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in tally.sample)
    write_durable(folder / "rejects.jsonl", rejects)
    write_durable(folder / "summary.json", json.dumps(tally.summary(), indent=2, ensure_ascii=False) + "\n")
