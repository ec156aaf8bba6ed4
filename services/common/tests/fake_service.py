"""A service whose jobs are those of `fake_jobs.py`, run as a real process by the tests.

It borrows the exporter's protocol: what a job does is the first URI of an ImportFiles request.
"""

from fake_jobs import FakeSettings

from gpt2.exporter.v1 import exporter_service_pb2, exporter_service_pb2_grpc
from gpt2_common.jobs.definition import JobKind
from gpt2_common.server import ServiceDefinition, main

IMPORT_FILES = JobKind(
    name="ImportFiles",
    request=exporter_service_pb2.ImportFilesRequest,
    function="fake_jobs:work",
    settings=FakeSettings,
    concurrency=2,
)


class Servicer(exporter_service_pb2_grpc.ExporterServiceServicer):
    def __init__(self, jobs):
        self._jobs = jobs

    async def ImportFiles(self, request, context):
        problems = [] if request.uris else [("uris", "is required")]
        return exporter_service_pb2.ImportFilesResponse(job=await self._jobs.start(IMPORT_FILES, request, problems))

    async def DescribeSource(self, request, context):
        raise RuntimeError("secret-detail")


def add_servicer(surroundings, server):
    servicer = Servicer(surroundings.jobs)
    exporter_service_pb2_grpc.add_ExporterServiceServicer_to_server(servicer, server)
    return servicer


SERVICE = ServiceDefinition(
    name="fake",
    grpc_service="gpt2.exporter.v1.ExporterService",
    settings=FakeSettings,
    kinds=[IMPORT_FILES],
    add_servicer=add_servicer,
)

if __name__ == "__main__":
    main(SERVICE)
