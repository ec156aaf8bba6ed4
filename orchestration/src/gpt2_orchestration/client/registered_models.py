"""Registered models: listed, and the versions that references name.

A reference is `news`, `news/3` or `news@staging`, each with or without `models:/`.
"""

from collections.abc import Iterator

from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2_contracts.model_version import EVALUATION_TAG_PREFIX, MODEL_ARTIFACT_TAG
from gpt2_orchestration.client.service_client import ServiceClient, ServiceError
from gpt2_orchestration.errors import InputError

SHORT_DIGEST = 12
"""Characters of a digest in tables."""

REFERENCE_HELP = "NAME (its newest version), NAME/VERSION or NAME@LABEL."


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
    """Tags of a version by name, without the evaluations, which are a field of it."""
    return {name: value for name, value in sorted(version.tags.items()) if not name.startswith(EVALUATION_TAG_PREFIX)}


def place(measurement: pb.Measurement) -> str:
    """The data of a measurement, for tables: the end of its URI and the start of its digest."""
    end = measurement.uri.rstrip("/").rsplit("/", 1)[-1]
    return f"{end} {measurement.digest[:SHORT_DIGEST]}"


def find_version(registry: ServiceClient, reference: str) -> pb.ModelVersion:
    """Asks the registry for the version that a reference names. Raises ServiceError and InputError."""
    name = reference.removeprefix("models:/")
    if "@" in name:
        name, label = name.rsplit("@", 1)
        request = pb.GetModelVersionRequest(model_name=name, label=label)
    elif "/" in name:
        name, number = name.rsplit("/", 1)
        request = pb.GetModelVersionRequest(model_name=name, version=_number(reference, number))
    else:
        return _newest(registry, name)
    version: pb.ModelVersion = registry.call("GetModelVersion", request).model_version
    return version


def artifact_uri(registry: ServiceClient, reference: str) -> str:
    """URI of the model artifact behind the version that a reference names. Raises ServiceError and InputError."""
    return registered_uri(find_version(registry, reference))


def registered_uri(version: pb.ModelVersion) -> str:
    """URI of the model artifact that a version was registered from. Raises ServiceError."""
    uri = version.tags.get(MODEL_ARTIFACT_TAG)
    if not uri:
        raise ServiceError(
            f"{version.model_uri} has no tag {MODEL_ARTIFACT_TAG}: name the URI of a model artifact instead"
        )
    return str(uri)


def _newest(registry: ServiceClient, name: str) -> pb.ModelVersion:
    request = pb.ListModelVersionsRequest(model_name=name, page_size=1)
    found = registry.call("ListModelVersions", request).model_versions
    if not found:
        raise ServiceError(f"model {name!r} has no version: register one with RegisterModel")
    newest: pb.ModelVersion = found[0]
    return newest


def _number(reference: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise InputError(f"{reference!r} is not a model version: write {REFERENCE_HELP}")
    return int(text)
