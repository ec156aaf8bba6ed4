"""The registered models, as the registry lists and describes them."""

from collections.abc import Iterator

from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2_orchestration.client import ServiceClient

_EVALUATION_TAG = "gpt2.evaluation."


def list_models(registry: ServiceClient) -> Iterator[pb.RegisteredModel]:
    """All models, by name. Raises ServiceError."""
    request = pb.ListModelsRequest()
    while True:
        page = registry.call("ListModels", request)
        yield from page.models
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def described_tags(version: pb.ModelVersion) -> dict[str, str]:
    """Tags of a version, by name; without those whose content its field `evaluations` has."""
    return {name: value for name, value in sorted(version.tags.items()) if not name.startswith(_EVALUATION_TAG)}
