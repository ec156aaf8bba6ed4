"""Builds the TFX pipeline of a specification: a component for each stage."""

from collections.abc import Mapping

from tfx.orchestration import metadata
from tfx.orchestration.pipeline import Pipeline
from tfx.types.channel import BaseChannel

from gpt2_orchestration import components
from gpt2_orchestration.pipelines.graph import pipeline_stages
from gpt2_orchestration.pipelines.requests import request_json
from gpt2_orchestration.pipelines.settings import PipelineSettings, ServiceFacts
from gpt2_orchestration.specification import PipelineSpecification


def create_pipeline(specification: PipelineSpecification, facts: ServiceFacts, settings: PipelineSettings) -> Pipeline:
    """Builds the pipeline; the same for every runner.

    Args:
        specification: What it does.
        facts: What the services say now.
        settings: Where it keeps its own things.
    """
    made: dict[str, components.ServiceComponent] = {}
    for stage in pipeline_stages(specification, facts.snapshot):
        inputs: Mapping[str, BaseChannel] = {
            name: made[source.stage].outputs[source.output] for name, source in stage.inputs.items()
        }
        made[stage.name] = components.COMPONENTS[stage.name](
            request=request_json(stage.request),
            service_version=facts.versions.get(stage.call.service, ""),
            **inputs,
        )
    settings.metadata.parent.mkdir(parents=True, exist_ok=True)
    return Pipeline(
        pipeline_name=specification.name,
        pipeline_root=str(settings.root),
        components=list(made.values()),
        enable_cache=settings.enable_cache,
        metadata_connection_config=metadata.sqlite_metadata_connection_config(str(settings.metadata)),
        beam_pipeline_args=list(settings.beam_options),
    )
