"""Runs a pipeline here: in this process one component after the other, or as a Beam pipeline."""

import os
import signal
import sys
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
from gpt2_orchestration.progress import warning_line
from gpt2_orchestration.runs import cancel_run, find_jobs
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
                cancel_run(ClientSettings.from_environment(), _run_id(pipeline), "the pipeline was interrupted")
            raise KeyboardInterrupt from None
        _print_warnings(_run_id(pipeline))


def _run_id(pipeline: Any) -> str:
    """The run id that the jobs of a pipeline's components have."""
    run_id = pipeline.runtime_spec.pipeline_run_id.field_value.string_value
    return run_name(pipeline.pipeline_info.id, run_id)


def _print_warnings(run_id: str) -> None:
    """Ends the output with what the jobs warned of: lines printed while they ran are far up, or were never seen."""
    for job in find_jobs(ClientSettings.from_environment(), run_id):
        for text in job.warnings:
            print(warning_line(job.kind, text), file=sys.stderr, flush=True)


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
