"""Runs one component of a pipeline, for runners with a process per component.

As in TFX's local runner, the driver checks the cache, the executor runs, and the publisher writes to ML Metadata.
"""

from tfx.dsl.compiler import compiler, constants
from tfx.orchestration import metadata
from tfx.orchestration.local import runner_utils
from tfx.orchestration.portable import launcher, runtime_parameter_utils

from gpt2_orchestration.pipelines.pipeline import create_pipeline
from gpt2_orchestration.pipelines.settings import PipelineSettings, ServiceFacts
from gpt2_orchestration.pipelines.specification import PipelineSpecification


def run_stage(
    stage: str, run_id: str, specification: PipelineSpecification, facts: ServiceFacts, settings: PipelineSettings
) -> None:
    """Runs a component whose inputs exist in the same run.

    Args:
        stage: Name of the stage.
        run_id: The run, the same for all its stages and for their retries.
        specification: The pipeline's specification.
        facts: State of the services at the start of the run.
        settings: Folders and the metadata store.

    Raises:
        ServiceError, JobFailed: As the component.
    """
    pipeline = compiler.Compiler().compile(create_pipeline(specification, facts, settings))
    runtime_parameter_utils.substitute_runtime_parameter(pipeline, {constants.PIPELINE_RUN_ID_PARAMETER_NAME: run_id})
    deployment = runner_utils.extract_local_deployment_config(pipeline)
    connection = deployment.metadata_connection_config
    node = next(node.pipeline_node for node in pipeline.nodes if node.pipeline_node.node_info.id == stage)
    launcher.Launcher(
        pipeline_node=node,
        mlmd_connection=metadata.Metadata(getattr(connection, connection.WhichOneof("connection_config"))),
        pipeline_info=pipeline.pipeline_info,
        pipeline_runtime_spec=pipeline.runtime_spec,
        executor_spec=runner_utils.extract_executor_spec(deployment, stage),
        custom_driver_spec=runner_utils.extract_custom_driver_spec(deployment, stage),
    ).launch()
