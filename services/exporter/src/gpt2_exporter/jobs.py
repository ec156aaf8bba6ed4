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
from gpt2_common.jobs.definition import JobKind
from gpt2_exporter.corpus.checkpoint import Checkpoint
from gpt2_exporter.corpus.export import OUTPUT, RejectLimit, write_corpus
from gpt2_exporter.corpus.field_path import DEFAULT_TEXT_FIELD
from gpt2_exporter.files.advice import advice_on_files
from gpt2_exporter.files.listing import describe_passed_over, list_files
from gpt2_exporter.files.reading import FileDocuments
from gpt2_exporter.files.rules import FileRules
from gpt2_exporter.mongo.advice import advice_on_collections
from gpt2_exporter.mongo.completeness import Incomplete
from gpt2_exporter.mongo.connection import Server, connect
from gpt2_exporter.mongo.reading import MongoDocuments
from gpt2_exporter.mongo.since import FIELD as SINCE_FIELD
from gpt2_exporter.mongo.since import Since
from gpt2_exporter.mongo.snapshot import Snapshot, take_snapshot
from gpt2_exporter.settings import ExporterSettings

_SNAPSHOT_FILE = "snapshot.json"

EXPORT_CORPUS = JobKind(
    name="ExportCorpus",
    request=pb.ExportCorpusRequest,
    function="gpt2_exporter.jobs:export_corpus",
    settings=ExporterSettings,
)
IMPORT_FILES = JobKind(
    name="ImportFiles",
    request=pb.ImportFilesRequest,
    function="gpt2_exporter.jobs:import_files",
    settings=ExporterSettings,
)


def export_corpus(
    request: pb.ExportCorpusRequest, context: JobContext[ExporterSettings]
) -> Sequence[artifact_pb2.Artifact]:
    """Exports the documents of MongoDB collections."""
    made = context.committed(OUTPUT, "corpus")
    return [output(OUTPUT, made or _export(request, context))]


def import_files(
    request: pb.ImportFilesRequest, context: JobContext[ExporterSettings]
) -> Sequence[artifact_pb2.Artifact]:
    """Imports the documents of text files."""
    made = context.committed(OUTPUT, "corpus")
    return [output(OUTPUT, made or _import(request, context))]


def _export(request: pb.ExportCorpusRequest, context: JobContext[ExporterSettings]) -> Artifact:
    path = request.source.text_field or DEFAULT_TEXT_FIELD
    limit = RejectLimit(
        request.max_rejected, request.max_rejected_share, lambda tally: advice_on_collections(tally, path)
    )
    previous = None
    if request.since_corpus_uri:
        previous = context.open(SINCE_FIELD, request.since_corpus_uri, "corpus")
    since = Since.of(previous, request.source) if previous else Since.beginning(request.source)
    with connect(context.settings, request.source.connection) as server:
        snapshot = _fix_snapshot(request, context.work, server)
        documents = MongoDocuments(server, request.source, snapshot, since, context.settings.mongodb_readers)
        try:
            return write_corpus(context, documents, limit, request.documents, [previous] if previous else [])
        except Incomplete:
            # A retry goes on from nothing: what is missing may be missing in the shards that are finished.
            Checkpoint.remove(context.work)
            (context.work / _SNAPSHOT_FILE).unlink(missing_ok=True)
            raise


def _fix_snapshot(request: pb.ExportCorpusRequest, work: Path, server: Server) -> Snapshot:
    """What the job exports. Without a snapshot in the request, what its first attempt found."""
    noted = work / _SNAPSHOT_FILE
    if request.snapshot:
        snapshot = Snapshot.parse(request.snapshot, request.source)
    elif noted.exists():
        snapshot = Snapshot.parse(json.loads(noted.read_text(encoding="utf-8")), request.source)
    else:
        snapshot = take_snapshot(server, request.source)
        _require_documents(request.source, snapshot)
        write_durable(noted, json.dumps(snapshot.token()))
    _require_documents(request.source, snapshot)
    return snapshot


def _require_documents(source: pb.MongoSource, snapshot: Snapshot) -> None:
    """Raises FailedPrecondition when no document matches, or when a collection has none though nothing is filtered."""
    empty = [name for name, state in zip(source.collections, snapshot.collections, strict=True) if not state.greatest]
    if not empty or (source.filter and len(empty) < len(source.collections)):
        return
    names = ", ".join(f"{source.database}.{name}" for name in empty)
    matching = f" that matches source.filter {source.filter}" if source.filter else ""
    raise FailedPrecondition(
        f"{names} has no document{matching}: correct source.database, source.collections or source.filter, or fill it"
    )


def _import(request: pb.ImportFilesRequest, context: JobContext[ExporterSettings]) -> Artifact:
    listing = list_files(request.uris, context.require_allowed)
    if listing.passed_over:
        context.warn(f"passed over: {describe_passed_over(listing.passed_over)}")
    rules = FileRules.of(request)
    limit = RejectLimit(request.max_rejected, request.max_rejected_share, lambda tally: advice_on_files(tally, rules))
    documents = FileDocuments(listing, rules, context.work, context.check_cancelled)
    return write_corpus(context, documents, limit, request.documents)
