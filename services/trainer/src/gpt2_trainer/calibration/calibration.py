"""Measures a training's step on each backend, one after the other, and keeps the results by what they depend on."""

import asyncio
import hashlib
import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpt2_common.child_process import TASK, ChildProcess
from gpt2_common.durable import write_durable
from gpt2_common.jobs.definition import service_version
from gpt2_trainer.calibration.choice import BackendChoice, expected_seconds
from gpt2_trainer.calibration.measurement import ERROR, SECONDS, MeasurementTask
from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.configuration.training import ResolvedTrainingConfig
from gpt2_trainer.formats.json_files import read_json
from gpt2_trainer.model.backend import BACKENDS, DEFAULT_BACKEND, BackendName, installed_version
from gpt2_trainer.model.compile_cache import CompileCacheOptions
from gpt2_trainer.model.processor import Processor

_MODULE = "gpt2_trainer.calibration.measurement"
_FOLDER = "calibrations"
_START_SECONDS = 300.0
_MAX_STEPS = 20
"""Of a step as `expected_seconds` estimates it: together with `_START_SECONDS` the time limit of a measurement."""
_POLL_SECONDS = 0.25
_FIELDS = (
    "batch_size",
    "gradient_accumulation_steps",
    "context_length",
    "precision",
    "optimizer",
    "gradient_checkpointing",
    "lora",
    "only_train_transformer_layers",
    "attention_dropout",
    "residual_dropout",
    "embedding_dropout",
    "ema_decay",
)
"""Of a training's configuration, what changes the arithmetic of a step."""
_PACKAGES = ("tensorflow", "tensorflow-cpu", "jax", "jaxlib", "keras")
_VARIABLES = ("XLA_FLAGS", "TF_XLA_FLAGS", "TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS")
_log = logging.getLogger(__name__)


class MeasurementFailed(Exception):
    """A backend could not be measured."""


class Calibration:
    """Chooses the backend of one training by measuring its step.

    Args:
        architecture: Sizes of the model.
        config: The training's configuration.
        programs: Subject of its compiled programs.
        options: Cache of compiled programs; the folder also keeps the results, unless its size is 0.
        revision: Commit of the code; empty where it is unknown.
        processor: The processor.
    """

    def __init__(
        self,
        architecture: Architecture,
        config: ResolvedTrainingConfig,
        programs: str,
        options: CompileCacheOptions,
        revision: str,
        processor: Processor,
    ) -> None:
        self._architecture = architecture
        self._config = config
        self._programs = programs
        self._options = options
        self._processor = processor
        self._key = self._dependencies(revision)
        digest = hashlib.sha256(json.dumps(self._key, sort_keys=True).encode()).hexdigest()[:32]
        self._file = options.folder / _FOLDER / f"{digest}.json"

    @property
    def file(self) -> Path:
        """Where the results are kept."""
        return self._file

    def choose(
        self,
        report: Callable[[int], None],
        check_interrupted: Callable[[], None],
        warn: Callable[[str], None],
    ) -> BackendChoice:
        """Chooses the backend with the most tokens a second.

        Args:
            report: Takes the number of backends that are measured.
            check_interrupted: Raises JobInterrupted when the job has to stop.
            warn: Takes what went wrong; a failed measurement is not kept.
        """
        speeds = self._read()
        is_kept = bool(speeds)
        failed: dict[BackendName, str] = {}
        for number, backend in enumerate([] if is_kept else BACKENDS):
            report(number)
            try:
                seconds = asyncio.run(self._measure(backend, check_interrupted))
                speeds[backend] = self._config.tokens_per_step / seconds
            except MeasurementFailed as error:
                failed[backend] = str(error)
        chosen = max(BACKENDS, key=lambda name: speeds.get(name, 0.0)) if speeds else DEFAULT_BACKEND
        for name, text in failed.items():
            warn(f"the calibration of {name} failed ({text}): the training runs on {chosen}")
        if not failed and not is_kept:
            self._write(speeds)
        source = "measured before" if is_kept else "measured"
        return BackendChoice(backend=chosen, reason=f"{source} on {self._processor}", tokens_per_second=speeds)

    async def _measure(self, backend: BackendName, check_interrupted: Callable[[], None]) -> float:
        """Seconds of a step on a backend. Raises MeasurementFailed."""
        task = MeasurementTask(
            backend=backend,
            architecture=self._architecture,
            config=self._config,
            compile_cache=self._options,
            programs=self._programs,
        )
        cores = self._processor.cores
        limit = _START_SECONDS + expected_seconds(self._architecture, self._config, cores, _MAX_STEPS)
        try:
            child = await ChildProcess.start(_MODULE, environment=os.environ)
        except OSError as error:
            raise MeasurementFailed(f"its process cannot be started: {error}") from error
        try:
            await child.send(TASK, task.to_json())
            answer = asyncio.ensure_future(_first_message(child))
            deadline = time.monotonic() + limit
            while not answer.done():
                await asyncio.wait({answer}, timeout=_POLL_SECONDS)
                check_interrupted()
                if not answer.done() and time.monotonic() > deadline:
                    raise MeasurementFailed(f"it took longer than {limit:,.0f} s")
            message = answer.result()
            if SECONDS not in message:
                raise MeasurementFailed(message.get(ERROR) or _end_of(await child.wait()))
            return float(message[SECONDS])
        finally:
            child.kill()
            await child.wait()

    def _dependencies(self, revision: str) -> dict[str, Any]:
        """What the results depend on."""
        architecture = self._architecture.to_json()
        # Where documents end changes no arithmetic.
        del architecture["end_token_id"]
        config = self._config.to_json()
        return {
            "processor": self._processor.model,
            "features": sorted(self._processor.features),
            "cores": self._processor.cores,
            "architecture": architecture,
            "config": {name: config[name] for name in _FIELDS},
            "packages": {name: installed_version(name) for name in _PACKAGES},
            "gpt2": [service_version(), revision],
            "variables": {name: os.environ.get(name, "") for name in _VARIABLES},
        }

    def _read(self) -> dict[BackendName, float]:
        """Tokens a second by backend, as measured before; empty where they were not."""
        try:
            stored = read_json(self._file)
            found = {name: float(stored["tokens_per_second"][name]) for name in BACKENDS}
        except OSError:
            # Where it cannot be read, it cannot be written either, of which `_write` warns.
            return {}
        except (KeyError, TypeError, ValueError) as error:
            _log.warning("%s is damaged (%s): the backends are measured again", self._file, error)
            return {}
        # Not a number is not below anything either.
        return found if all(0 < speed < math.inf for speed in found.values()) else {}

    def _write(self, speeds: Mapping[BackendName, float]) -> None:
        if not self._options.max_bytes:
            return
        content = {**self._key, "tokens_per_second": speeds}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_durable(self._file, json.dumps(content, indent=2))
        except OSError as error:
            _log.warning(
                "GPT2_COMPILE_CACHE_FOLDER: the calibration cannot be kept in %s (%s), and other trainings measure "
                "again: make the folder writable, or set it to another one",
                self._options.folder,
                error,
            )


async def _first_message(child: ChildProcess) -> dict[str, Any]:
    """The child's answer; empty where it ended without one."""
    async for message in child.messages():
        return message
    return {}


def _end_of(status: int) -> str:
    """Why a process ended, by its exit status."""
    if status >= 0:
        return f"its process ended with status {status}"
    name = str(-status)
    with suppress(ValueError):
        name = signal.Signals(-status).name
    return f"its process was killed by {name}{', as where memory is short' if name == 'SIGKILL' else ''}"
