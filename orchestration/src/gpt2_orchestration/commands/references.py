"""How a command line names a version of a model: `news`, `news/3`, `news@staging`, each with or without `models:/`."""

from gpt2.registry.v1 import registry_service_pb2 as pb
from gpt2_orchestration.client import ServiceClient, ServiceError
from gpt2_orchestration.commands.errors import UsageError

REFERENCE_HELP = "NAME (its newest version), NAME/VERSION or NAME@LABEL."

_ARTIFACT_TAG = "gpt2.model_artifact"


def find_version(registry: ServiceClient, reference: str) -> pb.ModelVersion:
    """Asks the registry for the version that a reference names. Raises ServiceError and UsageError."""
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
    """URI of the model artifact behind the version that a reference names. Raises ServiceError and UsageError."""
    return registered_uri(find_version(registry, reference))


def registered_uri(version: pb.ModelVersion) -> str:
    """URI of the model artifact that a version was registered from. Raises ServiceError."""
    uri = version.tags.get(_ARTIFACT_TAG)
    if not uri:
        raise ServiceError(f"{version.model_uri} has no tag {_ARTIFACT_TAG}: name the URI of a model artifact instead")
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
        raise UsageError(f"{reference!r} names no version: write {REFERENCE_HELP}")
    return int(text)
