"""The toy as a service."""

from gpt2.toy.v1 import toy_service_pb2
from gpt2_common.jobs.definition import Work
from gpt2_common.server import ServiceDefinition, main
from gpt2_common.settings import ServiceSettings

SERVICE = ServiceDefinition(
    name="toy",
    grpc_service=toy_service_pb2.DESCRIPTOR.services_by_name["ToyService"],
    settings=ServiceSettings,
    work={"CountWords": Work("toy_jobs:count_words")},
)

if __name__ == "__main__":
    main(SERVICE)
