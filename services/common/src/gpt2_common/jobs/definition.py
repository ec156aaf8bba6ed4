"""The kinds of job that a service runs: stages of the catalogue, and the functions that do their work."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Protocol, cast

from google.protobuf.message import Message

from gpt2.jobs.v1 import job_pb2
from gpt2_catalogue import Stage
from gpt2_common.settings import ServiceSettings


class StartRequest(Protocol):
    """Any start call's request: a message whose field `job` holds the options of its job."""

    @property
    def job(self) -> job_pb2.JobOptions:
        """Id, run and retry behaviour."""

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes:
        """The request as bytes."""


@dataclass(frozen=True, slots=True)
class Work:
    """How the work of a stage is done."""

    function: str
    """`module:function`, called in the child with the request and a JobContext; it returns the job's outputs.
    A name, not the function, so that the service itself never imports what only the work needs."""
    concurrency: int = 1
    """Jobs of the stage that run at once."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that the work's process starts with, here or elsewhere; a child's are those of the service first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobKind:
    """One kind of job."""

    stage: Stage
    work: Work
    settings: type[ServiceSettings]
    """Settings that the work's process reads from the environment."""

    @property
    def name(self) -> str:
        """Name of the start call, such as `TrainModel`."""
        return self.stage.name

    @property
    def request(self) -> type[Message]:
        """Type of the start call's request."""
        return self.stage.request


def service_version() -> str:
    """Version of the services' code. They are released together, with one version."""
    return version("gpt2-common")


def import_name(name: str) -> Any:
    """Imports what `module:attribute` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def import_function(name: str) -> Callable[..., Any]:
    """Imports the function that `module:function` names."""
    return cast(Callable[..., Any], import_name(name))
