"""A service whose jobs are those of `fake_jobs.py`, run as a real process by the tests.

It borrows the exporter's protocol: what a job does is the first URI of an ImportFiles request.
"""

from fake_jobs import FakeSettings

from gpt2.exporter.v1 import exporter_service_pb2
from gpt2_common.jobs.definition import Work
from gpt2_common.server import ServiceDefinition, main


class Servicer:
    async def DescribeSource(self, request, context):
        raise RuntimeError("secret-detail")


SERVICE = ServiceDefinition(
    name="fake",
    grpc_service=exporter_service_pb2.DESCRIPTOR.services_by_name["ExporterService"],
    settings=FakeSettings,
    work={"ImportFiles": Work("fake_jobs:work", concurrency=2)},
    servicer=lambda _: Servicer(),
)

if __name__ == "__main__":
    main(SERVICE)
