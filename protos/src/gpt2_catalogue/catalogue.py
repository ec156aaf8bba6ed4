"""The catalogue of a set of services. That of the pipeline's own is found among the packages below `gpt2`."""

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from google.protobuf.descriptor import ServiceDescriptor

import gpt2
from gpt2.jobs.v1 import stage_pb2
from gpt2_catalogue.stage import Stage, service_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalogue:
    """Services and their stages."""

    services: Mapping[str, ServiceDescriptor]
    """The services that have stages, by short name, such as `trainer`."""
    stages: Mapping[str, Stage]
    """The stages by the names of their start calls, such as `TrainModel`."""


def build_catalogue(services: Iterable[ServiceDescriptor]) -> Catalogue:
    """The catalogue of services; those without a start call are left out.

    Raises:
        ValueError: A stage's declaration is wrong, or two services have start calls of one name.
    """
    found: dict[str, ServiceDescriptor] = {}
    stages: dict[str, Stage] = {}
    for service in services:
        for method in service.methods:
            if not method.GetOptions().HasExtension(stage_pb2.stage):
                continue
            if method.name in stages:
                raise ValueError(f"{method.full_name}: {stages[method.name].service} has this start call; rename one")
            stages[method.name] = Stage.of(method)
            found[service_name(service.full_name)] = service
    return Catalogue(services=MappingProxyType(found), stages=MappingProxyType(stages))


@cache
def catalogue() -> Catalogue:
    """The catalogue of all services in `gpt2`: what is on the path, from whichever distributions."""
    return build_catalogue(_services())


def _services() -> Iterator[ServiceDescriptor]:
    # By file names alone, so that nothing but the services' own messages is imported.
    for package in pkgutil.walk_packages(gpt2.__path__, "gpt2."):
        if package.name.endswith("_service_pb2"):
            yield from importlib.import_module(package.name).DESCRIPTOR.services_by_name.values()
