"""Which backend a training runs on, and why: the rules that need no measurement, and the record of what was chosen.

A training never changes its backend: each rounds in its own way, and a resumed training would have other numbers.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpt2_common.durable import write_durable
from gpt2_common.errors import DataLoss
from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.configuration.training import ResolvedTrainingConfig
from gpt2_trainer.formats.json_files import read_json
from gpt2_trainer.model.backend import AUTO, BACKENDS, DEFAULT_BACKEND, BackendName, BackendSetting
from gpt2_trainer.training.mfu import flops_per_token

_FLOPS_PER_CORE = 5e10
"""FLOP/s of a core in a training step: what processors with AVX2 were measured to have; others have more."""
_MIN_SECONDS = 20 * 60.0
_MIN_STEPS = 200
_FILE = "backend.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendChoice:
    """The backend of a training."""

    backend: BackendName
    reason: str
    tokens_per_second: Mapping[BackendName, float] = field(default_factory=dict)
    """What a calibration measured, by backend; empty without one."""

    def __str__(self) -> str:
        return f"{self.backend}: {self.reason}"

    @property
    def speeds(self) -> str:
        """Tokens a second on each backend, as text."""
        measured = ", ".join(f"{name} {speed:,.1f}" for name, speed in self.tokens_per_second.items())
        return f"{measured} tokens/s" if measured else "nothing was measured"

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "BackendChoice":
        """Reads what `dataclasses.asdict` returned. Raises KeyError, TypeError or ValueError where it is not that."""
        if content["backend"] not in BACKENDS:
            raise ValueError(f"backend: {content['backend']!r} is none of {', '.join(BACKENDS)}")
        return cls(**content)


def expected_seconds(
    architecture: Architecture, config: ResolvedTrainingConfig, cores: int, steps: int | None = None
) -> float:
    """Estimated time of a training, or of so many of its steps, on a slow processor with so many cores."""
    flops = flops_per_token(architecture, config.context_length) * config.tokens_per_step
    return flops * (config.steps - config.first_step if steps is None else steps) / (_FLOPS_PER_CORE * cores)


def choose_by_rule(
    setting: BackendSetting,
    architecture: Architecture,
    config: ResolvedTrainingConfig,
    *,
    is_on_cpu: bool,
    cores: int,
    nodes: int,
    continued: str,
) -> BackendChoice | None:
    """The backend of a training that begins, where no measurement is needed; None: a calibration decides.

    Args:
        setting: GPT2_KERAS_BACKEND.
        architecture: Sizes of the model.
        config: The training's configuration.
        is_on_cpu: Whether it runs on CPUs.
        cores: Cores that it may use.
        nodes: Nodes that it runs on.
        continued: Backend of the training that it continues; empty where there is none.
    """
    if setting != AUTO:
        return BackendChoice(backend=setting, reason="GPT2_KERAS_BACKEND names it")
    if max(config.devices or 1, config.model_devices, config.num_nodes, nodes) > 1:
        return BackendChoice(backend="jax", reason="several devices or nodes need it")
    if not is_on_cpu:
        return BackendChoice(backend="jax", reason="it is the faster one on GPUs")
    for backend in BACKENDS:
        if backend == continued:
            return BackendChoice(backend=backend, reason="the training to continue ran on it")
    seconds = min(expected_seconds(architecture, config, cores), config.max_seconds or float("inf"))
    if seconds < _MIN_SECONDS or config.steps - config.first_step < _MIN_STEPS:
        return BackendChoice(backend=DEFAULT_BACKEND, reason="the training is too short for a calibration to pay")
    return None


def read_choice(work: Path, belongs_to: Mapping[str, str]) -> BackendChoice | None:
    """What an earlier attempt of a job chose; None where there was none.

    Args:
        work: The job's work folder.
        belongs_to: What identifies the training: digests of its request and dataset.

    Raises:
        DataLoss: The record is damaged.
    """
    file = work / _FILE
    try:
        stored = read_json(file)
        if not belongs_to.items() <= stored.items():
            return None
        return BackendChoice.from_json(stored["choice"])
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise DataLoss(f"{file} is damaged ({error}): start the training again under another job id") from error


def write_choice(work: Path, belongs_to: Mapping[str, str], choice: BackendChoice) -> None:
    """Records a choice for later attempts; arguments as of `read_choice`."""
    write_durable(work / _FILE, json.dumps({**belongs_to, "choice": asdict(choice)}, indent=2))
