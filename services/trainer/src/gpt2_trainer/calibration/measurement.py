"""The process that measures a training's step on one backend: `python -m gpt2_trainer.calibration.measurement`.

It is a child of the job's process, as a process has one backend for good. The task comes as a command and has the
fields of a MeasurementTask; the answer is a message of type `seconds`, or `error`.
"""

import logging
import os
import time
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from gpt2_common.child_process import ServiceConnection
from gpt2_common.logs import configure_logs
from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.configuration.training import ResolvedTrainingConfig
from gpt2_trainer.model.backend import BackendName, select_backend
from gpt2_trainer.model.compile_cache import CompileCache, CompileCacheOptions
from gpt2_trainer.model.lora import initial_adapters
from gpt2_trainer.model.weights import initial_weights, pad_vocabulary

SECONDS, ERROR = "seconds", "error"
MAX_STEPS = 10
MAX_SECONDS = 10.0
"""After so many steps, or so long, no further step is measured; one always is, after the one that compiles."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasurementTask:
    """A training whose step is measured on one backend."""

    backend: BackendName
    architecture: Architecture
    config: ResolvedTrainingConfig
    compile_cache: CompileCacheOptions
    programs: str
    """Subject of the training's compiled programs: the training then finds those that the measurement compiled."""

    def to_json(self) -> dict[str, Any]:
        """The task as JSON."""
        cache = asdict(self.compile_cache) | {"folder": str(self.compile_cache.folder)}
        return {
            "backend": self.backend,
            "architecture": self.architecture.to_json(),
            "config": self.config.to_json(),
            "compile_cache": cache,
            "programs": self.programs,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "MeasurementTask":
        """Reads what `to_json` made."""
        cache = content["compile_cache"]
        return cls(
            backend=content["backend"],
            architecture=Architecture.from_json(content["architecture"]),
            config=ResolvedTrainingConfig.from_json(content["config"]),
            compile_cache=CompileCacheOptions(Path(cache["folder"]), cache["max_bytes"]),
            programs=content["programs"],
        )


def measure(task: MeasurementTask) -> float:
    """Seconds of the fastest of a few training steps, on random tokens: others are slowed by what else runs."""
    programs = CompileCache(task.compile_cache, task.backend, task.programs, keep_tensorflow=True)
    select_backend(task.backend)
    # They import Keras.
    from gpt2_trainer.kernels.selection import create_model
    from gpt2_trainer.training.executor import create_executor
    from gpt2_trainer.training.step import TrainingStep

    config, architecture = task.config, task.architecture
    model = create_model(architecture, config.precision, training=True, remat=config.gradient_checkpointing)
    weights = pad_vocabulary(initial_weights(architecture, config.seed), architecture)
    if config.lora is not None:
        weights |= initial_adapters(architecture, config.lora, config.seed)
    executor = create_executor(TrainingStep(model, config), weights, None)
    random, steps = np.random.default_rng(config.seed), count()

    def seconds_of_step() -> float:
        shape = (config.batch_size, config.context_length + 1)
        tokens = random.integers(0, architecture.vocabulary_size, shape, dtype=np.int32)
        started = time.perf_counter()
        float(executor.train(next(steps), tokens[:, :-1], tokens[:, 1:]).loss)
        return time.perf_counter() - started

    compiling = seconds_of_step()
    programs.publish()
    measured = [seconds_of_step()]
    while len(measured) < MAX_STEPS and sum(measured) < MAX_SECONDS:
        measured.append(seconds_of_step())
    _log.info("%s: first step %.1f s, fastest of %d: %.3f s", task.backend, compiling, len(measured), min(measured))
    return min(measured)


def main() -> None:
    """Measures what the parent asks for."""
    parent = ServiceConnection.open()
    configure_logs("trainer", os.environ.get("GPT2_LOG_LEVEL", "INFO"))
    _, content = parent.receive()
    # It ends with its parent.
    parent.listen(lambda *_: None)
    try:
        parent.send({SECONDS: measure(MeasurementTask.from_json(content))})
    except Exception as error:  # noqa: BLE001 - whatever it is, the training runs on the other backend
        parent.send({ERROR: f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
