"""Runs a pipeline here: in this process one component after the other, or as a Beam pipeline."""

from collections.abc import Mapping
from typing import Any

from tfx.orchestration.beam.beam_dag_runner import BeamDagRunner
from tfx.orchestration.local.local_dag_runner import LocalDagRunner

from gpt2_orchestration.pipelines.pipeline import create_pipeline
from gpt2_orchestration.pipelines.settings import PipelineSettings, ServiceFacts
from gpt2_orchestration.specification import PipelineSpecification

RUNNERS: Mapping[str, type[Any]] = {"local": LocalDagRunner, "beam": BeamDagRunner}
"""The runners by name."""


def run_pipeline(
    runner: str, specification: PipelineSpecification, facts: ServiceFacts, settings: PipelineSettings
) -> None:
    """Builds a pipeline and runs it to its end.

    Args:
        runner: `local` or `beam`.
        specification: What it does.
        facts: What the services say now.
        settings: Where it keeps its own things.

    Raises:
        ServiceError, JobFailed: As the components.
    """
    RUNNERS[runner]().run(create_pipeline(specification, facts, settings))
