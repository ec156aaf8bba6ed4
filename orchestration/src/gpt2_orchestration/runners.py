"""Runs a pipeline here: in this process one component after the other, or as a Beam pipeline."""

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tfx.dsl.compiler.compiler import Compiler
from tfx.orchestration.beam.beam_dag_runner import BeamDagRunner
from tfx.orchestration.local.local_dag_runner import LocalDagRunner

from gpt2_orchestration.client import ClientSettings
from gpt2_orchestration.pipelines.pipeline import create_pipeline
from gpt2_orchestration.pipelines.requests import ON_INTERRUPT, run_name
from gpt2_orchestration.pipelines.settings import PipelineSettings, ServiceFacts
from gpt2_orchestration.runs import cancel_run
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
    pipeline = Compiler().compile(create_pipeline(specification, facts, settings))
    with _noted_interrupt() as interrupted:
        try:
            RUNNERS[runner]().run_with_ir(pipeline)
        except BaseException:
            if not interrupted.is_set():
                raise
            # Where Beam runs components on other threads, they hear of no signal and cannot cancel their jobs; where it
            # does not, it gives the interrupt out as an error of its own.
            if os.environ.get(ON_INTERRUPT) != "leave":
                run_id = pipeline.runtime_spec.pipeline_run_id.field_value.string_value
                name = run_name(pipeline.pipeline_info.id, run_id)
                cancel_run(ClientSettings.from_environment(), name, "the pipeline was interrupted")
            raise KeyboardInterrupt from None


@contextmanager
def _noted_interrupt() -> Iterator[threading.Event]:
    """Gives what is set when Ctrl-C is pressed, whatever becomes of the KeyboardInterrupt."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of signal handlers
        interrupted.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
