"""Compiles a specification for Kubeflow Pipelines 2, with its own SDK: one thin container for each stage.

The containers only call the services, so that they need neither TFX nor a GPU. A task that is retried finds its job, as
job ids come from the run's id. Kubeflow's own cache is off: it would see neither new documents nor new code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler, components, dsl, kubernetes

from gpt2_orchestration.calls import DEFAULT_PORTS
from gpt2_orchestration.pipelines.graph import Stage, pipeline_stages
from gpt2_orchestration.pipelines.requests import request_json
from gpt2_orchestration.specification import PipelineSpecification, SpecificationError

_RETRIES = 3
_TYPES = {
    "checkpoint": "Model",
    "model": "Model",
    "initial_checkpoint": "Model",
    "corpus": "Dataset",
    "dataset": "Dataset",
}
"""Kubeflow's types of artifacts by our names; the others are of its general one."""


@dataclass(frozen=True, kw_only=True)
class KubeflowSettings:
    """What a compiled pipeline needs to know of its cluster."""

    image: str
    """Image of the tasks; it has gpt2-orchestration."""
    addresses: Mapping[str, str] = field(
        default_factory=lambda: {service: f"{service}:{port}" for service, port in DEFAULT_PORTS.items()}
    )
    """`host:port` of each service, seen from the pods."""
    token_secret: str = ""
    """Kubernetes secret whose key `token` is the bearer token; empty: none is sent."""


def parse_addresses(assignments: Sequence[str]) -> Mapping[str, str]:
    """Reads `SERVICE=HOST:PORT`; services that are not named are at their own name. Raises SpecificationError."""
    addresses = {service: f"{service}:{port}" for service, port in DEFAULT_PORTS.items()}
    for assignment in assignments:
        service, equals, address = assignment.partition("=")
        if service not in addresses or not equals or ":" not in address:
            known = ", ".join(DEFAULT_PORTS)
            raise SpecificationError(f"{assignment!r} is no SERVICE=HOST:PORT with a service of {known}")
        addresses[service] = address
    return addresses


def compile_pipeline(specification: PipelineSpecification, settings: KubeflowSettings, output: Path) -> None:
    """Writes the pipeline as Kubeflow's YAML.

    Args:
        specification: What the pipeline does.
        settings: The cluster.
        output: The YAML file.
    """
    stages = pipeline_stages(specification)

    @dsl.pipeline(  # type: ignore[untyped-decorator]
        name=specification.name, description="From text in a database to a registered GPT-2."
    )
    def pipeline() -> None:
        tasks: dict[str, Any] = {}
        for stage in stages:
            inputs = {name: tasks[source.stage].outputs[source.output] for name, source in stage.inputs.items()}
            make = components.load_component_from_text(yaml.safe_dump(_component(stage, settings.image)))
            task = make(request=request_json(stage.request), run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER, **inputs)
            task.set_display_name(stage.name).set_caching_options(enable_caching=False).set_retry(_RETRIES)
            _tell_addresses(task, settings)
            tasks[stage.name] = task

    compiler.Compiler().compile(pipeline, str(output))


def _tell_addresses(task: Any, settings: KubeflowSettings) -> None:
    for service, address in settings.addresses.items():
        task.set_env_variable(f"GPT2_{service.upper()}_ADDRESS", address)
    if settings.token_secret:
        kubernetes.use_secret_as_env(task, settings.token_secret, {"token": "GPT2_CLIENT_TOKEN"})


def _component(stage: Stage, image: str) -> dict[str, Any]:
    """A stage as a component of Kubeflow's."""
    return {
        "name": stage.name,
        "inputs": [
            {"name": "request", "type": "String"},
            {"name": "run_id", "type": "String"},
            *({"name": name, "type": _TYPES.get(name, "Artifact")} for name in stage.inputs),
        ],
        "outputs": [{"name": name, "type": _TYPES.get(name, "Artifact")} for name in stage.call.outputs],
        "implementation": {
            "container": {
                "image": image,
                "command": ["python", "-m", "gpt2_orchestration.kubeflow.task"],
                "args": [stage.name, {"executorInput": None}],
            }
        },
    }
