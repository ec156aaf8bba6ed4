"""The exporter as a service: its stages, their checks, and its other gRPC calls."""

import asyncio
from collections.abc import Mapping
from typing import Any

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_common.artifacts import ArtifactStore
from gpt2_common.errors import InvalidRequest
from gpt2_common.jobs.checks import StageChecks
from gpt2_common.jobs.definition import Work
from gpt2_common.server import ServiceContext, ServiceDefinition
from gpt2_exporter.mongo.connection import connect
from gpt2_exporter.mongo.snapshot import Snapshot, take_snapshot
from gpt2_exporter.settings import ExporterSettings
from gpt2_exporter.validation import export_problems, import_problems, source_problems


class ExporterServicer:
    """Answers the calls of gpt2.exporter.v1.ExporterService that start no job.

    Args:
        context: The service's context.
    """

    def __init__(self, context: ServiceContext[ExporterSettings]) -> None:
        self._settings = context.settings

    async def DescribeSource(self, request: pb.DescribeSourceRequest, context: Any) -> pb.DescribeSourceResponse:  # noqa: ARG002
        """Returns what an export would read now."""
        problems = source_problems(request.source, self._settings)
        if problems:
            raise InvalidRequest(problems)
        snapshot = await asyncio.to_thread(self._take_snapshot, request.source)
        documents = min(snapshot.documents, request.source.limit or snapshot.documents)
        return pb.DescribeSourceResponse(snapshot=snapshot.token(), documents=documents)

    def _take_snapshot(self, source: pb.MongoSource) -> Snapshot:
        with connect(self._settings, source.connection) as server:
            return take_snapshot(server, source)


def _checks(settings: ExporterSettings, artifacts: ArtifactStore) -> Mapping[str, StageChecks]:
    return {
        "ExportCorpus": StageChecks(request=lambda request: export_problems(request, settings)),
        "ImportFiles": StageChecks(request=lambda request: import_problems(request, artifacts.require_allowed)),
    }


SERVICE = ServiceDefinition(
    name="exporter",
    grpc_service=pb.DESCRIPTOR.services_by_name["ExporterService"],
    settings=ExporterSettings,
    work={
        "ExportCorpus": Work("gpt2_exporter.jobs:export_corpus"),
        "ImportFiles": Work("gpt2_exporter.jobs:import_files"),
    },
    checks=_checks,
    servicer=ExporterServicer,
)
