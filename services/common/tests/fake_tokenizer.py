"""A second fake service, so that runs pass from one service to another: what a job does is the URI that it imports."""

from fake_jobs import FakeSettings

from gpt2.tokenizer.v1 import tokenizer_service_pb2
from gpt2_common.jobs.definition import Work
from gpt2_common.server import ServiceDefinition, main

SERVICE = ServiceDefinition(
    name="tokenizer",
    grpc_service=tokenizer_service_pb2.DESCRIPTOR.services_by_name["TokenizerService"],
    settings=FakeSettings,
    work={"ImportTokenizer": Work("fake_jobs:work_of_uri", concurrency=2)},
)

if __name__ == "__main__":
    main(SERVICE)
