"""The exporter's jobs: what runs in a child process for each start call."""

import json
from collections.abc import Sequence
from pathlib import Path

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_common.artifacts import Artifact
from gpt2_common.durable import write_durable
from gpt2_common.errors import FailedPrecondition
from gpt2_common.jobs.context import JobContext, output
from gpt2_contracts.artifact import CORPUS
from gpt2_exporter.corpus.field_path import DEFAULT_TEXT_FIELD
from gpt2_exporter.corpus.pipeline import write_corpus
from gpt2_exporter.corpus.resume_point import ResumePoint
from gpt2_exporter.files.listing import describe_skipped, list_files
from gpt2_exporter.files.reading import FileDocuments
from gpt2_exporter.files.rules import FileRules
from gpt2_exporter.mongo.completeness import IncompleteExport
from gpt2_exporter.mongo.connection import Server, connect
from gpt2_exporter.mongo.previous_export import FIELD as SINCE_FIELD
from gpt2_exporter.mongo.previous_export import PreviousExport
from gpt2_exporter.mongo.reading import MongoDocuments
from gpt2_exporter.mongo.snapshot import Snapshot, take_snapshot
from gpt2_exporter.rejects.advice import advice_on_collections, advice_on_files
from gpt2_exporter.rejects.limit import RejectLimit
from gpt2_exporter.settings import ExporterSettings

_SNAPSHOT_FILE = "snapshot.json"


def export_corpus(
    request: pb.ExportCorpusRequest, context: JobContext[ExporterSettings]
) -> Sequence[artifact_pb2.Artifact]:
    """Exports the documents of MongoDB collections."""
    made = context.committed(CORPUS, CORPUS)
    return [output(CORPUS, made or _export(request, context))]


def import_files(
    request: pb.ImportFilesRequest, context: JobContext[ExporterSettings]
) -> Sequence[artifact_pb2.Artifact]:
    """Imports the documents of text files."""
    made = context.committed(CORPUS, CORPUS)
    return [output(CORPUS, made or _import(request, context))]


def _export(request: pb.ExportCorpusRequest, context: JobContext[ExporterSettings]) -> Artifact:
    path = request.source.text_field or DEFAULT_TEXT_FIELD
    limit = RejectLimit(
        request.max_rejected, request.max_rejected_fraction, lambda statistics: advice_on_collections(statistics, path)
    )
    previous, parents = None, []
    if request.since_corpus_uri:
        parents = [context.open(SINCE_FIELD, request.since_corpus_uri, CORPUS)]
        previous = PreviousExport.of(parents[0], request.source)
    with connect(context.settings, request.source.connection) as server:
        snapshot = _fix_snapshot(request, context.work, server)
        documents = MongoDocuments(server, request.source, snapshot, previous, context.settings.mongodb_readers)
        try:
            return write_corpus(context, documents, limit, request.documents, parents)
        except IncompleteExport:
            # A retry starts from the beginning: what is missing may be missing in the finished shards.
            ResumePoint.remove(context.work)
            (context.work / _SNAPSHOT_FILE).unlink(missing_ok=True)
            raise


def _fix_snapshot(request: pb.ExportCorpusRequest, work: Path, server: Server) -> Snapshot:
    """Returns the snapshot to export: that of the request, else the one that the first attempt of the job took."""
    file = work / _SNAPSHOT_FILE
    if request.snapshot:
        snapshot = Snapshot.parse(request.snapshot, request.source)
    elif file.exists():
        snapshot = Snapshot.parse(json.loads(file.read_text(encoding="utf-8")), request.source)
    else:
        snapshot = take_snapshot(server, request.source)
        _require_documents(request.source, snapshot)
        write_durable(file, json.dumps(snapshot.token()))
    _require_documents(request.source, snapshot)
    return snapshot


def _require_documents(source: pb.MongoSource, snapshot: Snapshot) -> None:
    """Raises FailedPrecondition when no document matches, or when a collection has none though nothing is filtered."""
    empty = [name for name, state in zip(source.collections, snapshot.collections, strict=True) if not state.max_ids]
    if not empty or (source.filter and len(empty) < len(source.collections)):
        return
    names = ", ".join(f"{source.database}.{name}" for name in empty)
    matching = f" that matches source.filter {source.filter}" if source.filter else ""
    raise FailedPrecondition(
        f"{names} has no document{matching}: correct source.database, source.collections or source.filter, or fill it"
    )


def _import(request: pb.ImportFilesRequest, context: JobContext[ExporterSettings]) -> Artifact:
    listing = list_files(request.uris, context.require_allowed)
    if listing.skipped:
        context.warn(f"passed over: {describe_skipped(listing.skipped)}")
    rules = FileRules.of(request)
    limit = RejectLimit(
        request.max_rejected, request.max_rejected_fraction, lambda statistics: advice_on_files(statistics, rules)
    )
    documents = FileDocuments(listing, rules, context.work, context.check_cancelled)
    return write_corpus(context, documents, limit, request.documents)
