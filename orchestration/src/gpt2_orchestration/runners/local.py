"""Runs a pipeline on this machine: its components in sequence, or as a Beam pipeline."""

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

from gpt2_orchestration.client.jobs import warning_line
from gpt2_orchestration.client.runs import cancel_run, find_jobs
from gpt2_orchestration.client.service_client import ClientSettings
from gpt2_orchestration.pipelines.pipeline import create_pipeline
from gpt2_orchestration.pipelines.requests import ON_INTERRUPT, run_name
from gpt2_orchestration.pipelines.settings import PipelineSettings, ServiceFacts
from gpt2_orchestration.pipelines.specification import PipelineSpecification

RUNNERS: Mapping[str, type[Any]] = {"local": LocalDagRunner, "beam": BeamDagRunner}
"""The runners by name."""


def run_pipeline(
    runner: str, specification: PipelineSpecification, facts: ServiceFacts, settings: PipelineSettings
) -> None:
    """Builds a pipeline and runs it.

    Args:
        runner: `local` or `beam`.
        specification: The pipeline's specification.
        facts: Versions and snapshot, for the cache keys.
        settings: Folders and the metadata store.

    Raises:
        ServiceError, JobFailed: As the components.
    """
    pipeline = Compiler().compile(create_pipeline(specification, facts, settings))
    with _interrupt_event() as interrupted:
        try:
            RUNNERS[runner]().run_with_ir(pipeline)
        except BaseException:
            if not interrupted.is_set():
                raise
            # Beam runs components on other threads, which receive no signal and cannot cancel their jobs, or wraps
            # the interrupt in another error.
            if os.environ.get(ON_INTERRUPT) != "leave":
                cancel_run(ClientSettings.from_environment(), _run_id(pipeline), "the pipeline was interrupted")
            raise KeyboardInterrupt from None
        _print_warnings(_run_id(pipeline))


def _run_id(pipeline: Any) -> str:
    """Run id of the jobs of a pipeline's components."""
    run_id = pipeline.runtime_spec.pipeline_run_id.field_value.string_value
    return run_name(pipeline.pipeline_info.id, run_id)


def _print_warnings(run_id: str) -> None:
    """Repeats the jobs' warnings at the end of the output."""
    for job in find_jobs(ClientSettings.from_environment(), run_id):
        for text in job.warnings:
            print(warning_line(job.kind, text), file=sys.stderr, flush=True)


@contextmanager
def _interrupt_event() -> Iterator[threading.Event]:
    """Yields an event that Ctrl-C sets, wherever the KeyboardInterrupt is raised."""
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
