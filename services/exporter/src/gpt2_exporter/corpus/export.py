"""Turns the documents of a source into a corpus artifact: the loop that both kinds of jobs share."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_common.artifacts import Artifact
from gpt2_common.durable import write_durable
from gpt2_common.errors import FailedPrecondition
from gpt2_common.jobs.context import JobContext
from gpt2_exporter.corpus.assembly import Assembly
from gpt2_exporter.corpus.checkpoint import Checkpoint
from gpt2_exporter.corpus.duplicates import SeenTexts
from gpt2_exporter.corpus.preparation import Preparation
from gpt2_exporter.corpus.record import TextSource
from gpt2_exporter.corpus.shards import ShardWriter
from gpt2_exporter.corpus.tally import Tally
from gpt2_exporter.settings import ExporterSettings

OUTPUT = "corpus"


@dataclass(frozen=True, slots=True)
class RejectLimit:
    """How many documents may be unusable, and what the user can do where they are more."""

    max_rejected: int
    """Most of them; -1 for no limit."""
    max_share: float
    """Most of them as a share of the documents read, which takes the place of `max_rejected` 0; 0 for none."""
    advice: Callable[[Tally], str]
    """What to change in the request, by what was left out."""

    def check(self, tally: Tally) -> None:
        """Raises FailedPrecondition when there are more already than the number allows."""
        most = -1 if self.max_share and not self.max_rejected else self.max_rejected
        if 0 <= most < tally.rejects.total():
            self._fail(tally, "max_rejected", f"{most}")

    def check_share(self, tally: Tally) -> None:
        """Raises FailedPrecondition when, all being read, there are more than the share allows."""
        if self.max_share and tally.rejects.total() > self.max_share * tally.read:
            self._fail(tally, "max_rejected_share", f"{self.max_share:g} of them")

    def _fail(self, tally: Tally, option: str, allowed: str) -> None:
        rejected = tally.rejects.total()
        raise FailedPrecondition(
            f"{rejected} of the first {tally.read} documents are unusable: {tally.explain_rejects()}; "
            f"{option} allows {allowed}: {self.advice(tally)}, or raise {option}",
            rejected=str(rejected),
        )


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
        source: Where the documents come from.
        limit: When to give up.
        options: What is done to the documents, and which of them are left out.
        parents: What the corpus goes on from.

    Raises:
        FailedPrecondition: Too many documents are unusable, or none is left to write.
    """
    with context.create(OUTPUT, "corpus", parents) as writer:
        checkpoint = Checkpoint.load(context.work, writer.folder, context.identity.request_digest, source.fingerprint)
        tally = _read(context, source, limit, options, checkpoint, writer.folder)
        limit.check_share(tally)
        if not tally.read:
            raise FailedPrecondition(source.nothing)
        if not tally.documents:
            raise FailedPrecondition(f"not one document is usable: {tally.explain_rejects()}: {limit.advice(tally)}")
        _write_reports(writer.folder, tally, source)
        return writer.commit(tally.counts(), {"snapshot": source.fingerprint, **source.properties})


def _read(
    context: JobContext[ExporterSettings],
    source: TextSource,
    limit: RejectLimit,
    options: pb.DocumentOptions,
    checkpoint: Checkpoint,
    folder: Path,
) -> Tally:
    """Reads to the end; looks after progress, cancellation and the limit."""
    tally = checkpoint.tally
    with ExitStack() as stack:
        seen = stack.enter_context(SeenTexts(context.work, tally.documents)) if options.drop_duplicates else None
        preparation = Preparation(options, seen)
        shards = stack.enter_context(ShardWriter())
        assembly = Assembly(context, checkpoint, shards, folder, limit.check, seen.save if seen else lambda: None)
        context.report("reading", 0, source.total, source.unit)
        for batch in source.batches(checkpoint.after):
            context.check_cancelled()
            assembly.add(preparation.prepare(batch, tally.documents))
            context.report("reading", batch.done, source.total, source.unit)
        assembly.finish()
    context.report("reading", source.total, source.total, source.unit)
    return tally


def _write_reports(folder: Path, tally: Tally, source: TextSource) -> None:
    rejects = "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in tally.sample)
    write_durable(folder / "rejects.jsonl", rejects)
    write_durable(
        folder / "summary.json", json.dumps({**tally.summary(), **source.summary}, indent=2, ensure_ascii=False) + "\n"
    )
