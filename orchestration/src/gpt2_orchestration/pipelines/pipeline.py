"""Builds the TFX pipeline of a specification, with a component for each stage."""

from collections.abc import Mapping
from typing import Any

from ml_metadata.proto import metadata_store_pb2
from tfx.orchestration import metadata
from tfx.orchestration.pipeline import Pipeline
from tfx.types.channel import BaseChannel

from gpt2_orchestration.pipelines.components import ServiceComponent, component_class
from gpt2_orchestration.pipelines.requests import request_json
from gpt2_orchestration.pipelines.settings import PipelineSettings, PostgresMetadata, ServiceFacts
from gpt2_orchestration.pipelines.specification import PipelineSpecification


def create_pipeline(specification: PipelineSpecification, facts: ServiceFacts, settings: PipelineSettings) -> Pipeline:
    """Builds the pipeline, which is the same for every runner.

    Args:
        specification: The pipeline's specification.
        facts: Versions and snapshot, for the cache keys.
        settings: Folders and the metadata store.
    """
    made: dict[str, ServiceComponent] = {}
    for stage in specification.stages(facts.snapshot):
        inputs: Mapping[str, BaseChannel] = {
            name: made[source.stage].outputs[source.output] for name, source in stage.inputs.items()
        }
        made[stage.name] = component_class(stage.declaration)(
            request=request_json(stage.request),
            service_version=facts.versions.get(stage.declaration.service, ""),
            **inputs,
        )
    return Pipeline(
        pipeline_name=specification.name,
        pipeline_root=str(settings.root),
        components=list(made.values()),
        enable_cache=settings.enable_cache,
        metadata_connection_config=_connection(settings),
        beam_pipeline_args=list(settings.beam_options),
    )


def _connection(settings: PipelineSettings) -> Any:
    place = settings.metadata
    if isinstance(place, PostgresMetadata):
        database = metadata_store_pb2.PostgreSQLDatabaseConfig(
            host=place.host, port=str(place.port), user=place.user, dbname=place.database
        )
        return metadata_store_pb2.ConnectionConfig(postgresql=database)
    place.parent.mkdir(parents=True, exist_ok=True)
    return metadata.sqlite_metadata_connection_config(str(place))
