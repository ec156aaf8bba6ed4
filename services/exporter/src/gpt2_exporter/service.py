"""The gRPC face of the exporter. Translates messages; decides nothing."""

import asyncio
from typing import Any

import grpc.aio

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2.exporter.v1 import exporter_service_pb2_grpc
from gpt2_common.artifacts import ArtifactStore
from gpt2_common.errors import InvalidRequest
from gpt2_common.jobs.manager import JobManager
from gpt2_common.server import ServiceDefinition, ServiceSurroundings
from gpt2_exporter.jobs import EXPORT_CORPUS, IMPORT_FILES
from gpt2_exporter.mongo.connection import connect
from gpt2_exporter.mongo.snapshot import Snapshot, take_snapshot
from gpt2_exporter.settings import ExporterSettings
from gpt2_exporter.validation import export_problems, import_problems, source_problems


class ExporterServicer(exporter_service_pb2_grpc.ExporterServiceServicer):
    """Serves gpt2.exporter.v1.ExporterService.

    Args:
        settings: The exporter's settings.
        jobs: Where jobs are started.
        artifacts: Which URIs are allowed.
    """

    def __init__(self, settings: ExporterSettings, jobs: JobManager, artifacts: ArtifactStore) -> None:
        self._settings = settings
        self._jobs = jobs
        self._artifacts = artifacts

    async def ExportCorpus(self, request: pb.ExportCorpusRequest, context: Any) -> pb.ExportCorpusResponse:  # noqa: ARG002
        """Starts an export from MongoDB."""
        problems = export_problems(request, self._settings, self._artifacts.require_allowed)
        job = await self._jobs.start(EXPORT_CORPUS, request, problems)
        return pb.ExportCorpusResponse(job=job)

    async def ImportFiles(self, request: pb.ImportFilesRequest, context: Any) -> pb.ImportFilesResponse:  # noqa: ARG002
        """Starts an import of text files."""
        problems = import_problems(request, self._artifacts.require_allowed)
        return pb.ImportFilesResponse(job=await self._jobs.start(IMPORT_FILES, request, problems))

    async def DescribeSource(self, request: pb.DescribeSourceRequest, context: Any) -> pb.DescribeSourceResponse:  # noqa: ARG002
        """Says what an export would see now."""
        problems = source_problems(request.HasField("source"), request.source, self._settings)
        if problems:
            raise InvalidRequest(problems)
        snapshot = await asyncio.to_thread(self._look, request.source)
        documents = min(snapshot.documents, request.source.limit or snapshot.documents)
        return pb.DescribeSourceResponse(snapshot=snapshot.token(), documents=documents)

    def _look(self, source: pb.MongoSource) -> Snapshot:
        with connect(self._settings, source.connection) as server:
            return take_snapshot(server, source)


def _add_servicer(surroundings: ServiceSurroundings[ExporterSettings], server: grpc.aio.Server) -> ExporterServicer:
    servicer = ExporterServicer(surroundings.settings, surroundings.jobs, surroundings.artifacts)
    exporter_service_pb2_grpc.add_ExporterServiceServicer_to_server(servicer, server)
    return servicer


SERVICE = ServiceDefinition(
    name="exporter",
    grpc_service="gpt2.exporter.v1.ExporterService",
    settings=ExporterSettings,
    kinds=[EXPORT_CORPUS, IMPORT_FILES],
    add_servicer=_add_servicer,
)
