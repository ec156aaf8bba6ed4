"""The registered models, as the registry lists them: page after page."""

from collections.abc import Iterator

from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2_orchestration.client import ServiceClient


def list_models(registry: ServiceClient) -> Iterator[pb.RegisteredModel]:
    """All models, by name. Raises ServiceError."""
    request = pb.ListModelsRequest()
    while True:
        page = registry.call("ListModels", request)
        yield from page.models
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token
