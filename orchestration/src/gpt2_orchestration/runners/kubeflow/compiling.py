"""Compiles a specification for Kubeflow Pipelines 2, with its SDK: one container for each stage.

Containers only call the services, so that they need neither TFX nor a GPU. Job ids derive from the run id, so that a
retried task finds its job. Kubeflow's cache is disabled, as its keys cover neither new documents nor new code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler, components, dsl, kubernetes

from gpt2_contracts.artifact import CHECKPOINT, CORPUS, DATASET, MODEL
from gpt2_orchestration.client.addresses import DEFAULT_PORTS, address_variable
from gpt2_orchestration.pipelines.graph import PipelineStage
from gpt2_orchestration.pipelines.requests import request_json
from gpt2_orchestration.pipelines.specification import PipelineSpecification, SpecificationError
from gpt2_orchestration.runners.kubeflow.validation import stages_json

_RETRIES = 3
_VALIDATE = "ValidateStages"
_TYPES = {CHECKPOINT: "Model", MODEL: "Model", CORPUS: "Dataset", DATASET: "Dataset"}
"""Kubeflow's artifact types by kind; other kinds are `Artifact`."""
NAMESPACE = "gpt2"
"""Namespace of the services in `orchestration/kubernetes`."""
CLIENT_LABEL = ("gpt2/client", "true")
"""Label of the pods that the network policies of `orchestration/kubernetes` let call the services."""
TOKEN_KEY = "auth-token"
"""Key of the bearer token in the Secret of `orchestration/kubernetes`."""


@dataclass(frozen=True, kw_only=True)
class KubeflowSettings:
    """Settings of the cluster."""

    image: str
    """Image of the tasks, with gpt2-orchestration."""
    addresses: Mapping[str, str] = field(default_factory=lambda: parse_addresses(()))
    """`host:port` of each service in the cluster."""
    token_secret: str = ""
    """`NAME` or `NAME/KEY` of the Kubernetes Secret with the bearer token, by default of TOKEN_KEY; empty: no token."""


def parse_addresses(assignments: Sequence[str]) -> Mapping[str, str]:
    """Parses `SERVICE=HOST:PORT`; by default those of `orchestration/kubernetes`. Raises SpecificationError."""
    addresses = _default_addresses()
    for assignment in assignments:
        service, equals, address = assignment.partition("=")
        if service not in addresses or not equals or ":" not in address:
            known = ", ".join(DEFAULT_PORTS)
            raise SpecificationError(f"{assignment!r} must be SERVICE=HOST:PORT, with one of the services {known}")
        addresses[service] = address
    return addresses


def _default_addresses() -> dict[str, str]:
    # With the namespace, as pipelines run in another.
    return {service: f"{service}.{NAMESPACE}:{port}" for service, port in DEFAULT_PORTS.items()}


def compile_pipeline(specification: PipelineSpecification, settings: KubeflowSettings, output: Path) -> None:
    """Writes the pipeline as Kubeflow's YAML.

    Args:
        specification: The pipeline's specification.
        settings: Settings of the cluster.
        output: The YAML file.
    """
    stages = specification.stages()

    @dsl.pipeline(  # type: ignore[untyped-decorator]
        name=specification.name, description="From text in a database to a registered GPT-2."
    )
    def pipeline() -> None:
        tasks: dict[str, Any] = {}
        make = components.load_component_from_text(yaml.safe_dump(_validation(settings.image)))
        validate = make(stages=stages_json(stages))
        _set_options(validate, _VALIDATE, settings)
        for stage in stages:
            inputs = {name: tasks[source.stage].outputs[source.output] for name, source in stage.inputs.items()}
            make = components.load_component_from_text(yaml.safe_dump(_component(stage, settings.image)))
            task = make(request=request_json(stage.request), run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER, **inputs)
            _set_options(task, stage.name, settings)
            if not inputs:
                task.after(validate)
            tasks[stage.name] = task

    compiler.Compiler().compile(pipeline, str(output))


def _set_options(task: Any, name: str, settings: KubeflowSettings) -> None:
    task.set_display_name(name).set_caching_options(enable_caching=False).set_retry(_RETRIES)
    for service, address in settings.addresses.items():
        task.set_env_variable(address_variable(service), address)
    kubernetes.add_pod_label(task, *CLIENT_LABEL)
    if settings.token_secret:
        secret, _, key = settings.token_secret.partition("/")
        kubernetes.use_secret_as_env(task, secret, {key or TOKEN_KEY: "GPT2_CLIENT_TOKEN"})


def _validation(image: str) -> dict[str, Any]:
    """Kubeflow's component that validates all stages before the first one."""
    return {
        "name": _VALIDATE,
        "inputs": [{"name": "stages", "type": "String"}],
        "implementation": {
            "container": {
                "image": image,
                "command": ["python", "-m", "gpt2_orchestration.runners.kubeflow.validation"],
                "args": [{"executorInput": None}],
            }
        },
    }


def _component(stage: PipelineStage, image: str) -> dict[str, Any]:
    """Kubeflow's component of a stage."""
    return {
        "name": stage.name,
        "inputs": [
            {"name": "request", "type": "String"},
            {"name": "run_id", "type": "String"},
            *(_artifact(item.name, item.kind) for item in stage.declaration.inputs if item.name in stage.inputs),
        ],
        "outputs": [_artifact(item.name, item.kind) for item in stage.declaration.outputs],
        "implementation": {
            "container": {
                "image": image,
                "command": ["python", "-m", "gpt2_orchestration.runners.kubeflow.task"],
                "args": [stage.name, {"executorInput": None}],
            }
        },
    }


def _artifact(name: str, kind: str) -> dict[str, str]:
    return {"name": name, "type": _TYPES.get(kind, "Artifact")}
