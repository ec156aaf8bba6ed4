"""Chooses what a TrainModel job computes with, says so, and keeps every attempt of the job to it."""

import logging
from collections.abc import Mapping

from gpt2_common.errors import FailedPrecondition
from gpt2_common.jobs.context import JobContext
from gpt2_common.revision import checkout_revision
from gpt2_trainer.calibration.calibration import Calibration
from gpt2_trainer.calibration.choice import BackendChoice, choose_by_rule, read_choice, write_choice
from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.configuration.training import ResolvedTrainingConfig
from gpt2_trainer.model.backend import AUTO, BACKENDS, DEFAULT_BACKEND
from gpt2_trainer.model.processor import Processor
from gpt2_trainer.settings import TrainerSettings
from gpt2_trainer.training.rank import Rank

_log = logging.getLogger(__name__)


class BackendChooser:
    """Chooses the backend of one attempt of a training.

    Args:
        context: The job's context.
        belongs_to: What identifies the training: digests of its request and dataset.
        rank: Which of its nodes this process is.
    """

    def __init__(self, context: JobContext[TrainerSettings], belongs_to: Mapping[str, str], rank: Rank) -> None:
        self._context = context
        self._belongs_to = belongs_to
        self._rank = rank
        self._processor = Processor.of_this_machine()

    def choose(
        self,
        architecture: Architecture,
        config: ResolvedTrainingConfig,
        programs: str,
        *,
        is_on_cpu: bool,
        begun: bool,
        continued: str,
    ) -> BackendChoice:
        """The training's backend, which the first attempt chooses and records for all later ones.

        Args:
            architecture: Sizes of the model.
            config: The training's configuration.
            programs: Subject of its compiled programs.
            is_on_cpu: Whether it runs on CPUs.
            begun: Whether an earlier attempt left a checkpoint.
            continued: Backend of the finished training that it continues; empty where there is none.

        Raises:
            DataLoss: The record is damaged.
            FailedPrecondition: The training began on a backend that cannot train on several nodes.
            JobInterrupted: The job was cancelled or suspended during a calibration.
        """
        if is_on_cpu and config.precision == "bfloat16" and self._processor.emulates_bfloat16:
            self._context.warn(
                f"config.precision: bfloat16 is slower than float32 on this processor, {self._processor}, which has no "
                "instructions for it; leave precision out, or train where there is AVX512_BF16 or AMX"
            )
        work = self._context.work
        choice = read_choice(work, self._belongs_to)
        if choice is not None:
            self._require_possible(choice)
        else:
            choice = self._new_choice(architecture, config, programs, is_on_cpu, begun, continued)
            if self._rank.is_first:
                write_choice(work, self._belongs_to, choice)
        _log.info("Keras trains with %s", choice)
        return choice

    def _require_possible(self, recorded: BackendChoice) -> None:
        setting = self._context.settings.keras_backend
        if self._rank.count > 1 and recorded.backend != "jax":
            raise FailedPrecondition(
                f"config.num_nodes: this training began on {recorded.backend}, on which it stays, and "
                f"{self._rank.count} nodes need jax; start it under another job id"
            )
        if setting not in (AUTO, recorded.backend):
            self._context.warn(
                f"GPT2_KERAS_BACKEND: is {setting}, and this training began on {recorded.backend}, on which it stays, "
                "as its numbers would change; start it under another job id to change the backend"
            )

    def _new_choice(
        self,
        architecture: Architecture,
        config: ResolvedTrainingConfig,
        programs: str,
        is_on_cpu: bool,
        begun: bool,
        continued: str,
    ) -> BackendChoice:
        settings = self._context.settings
        if begun and settings.keras_backend == AUTO and self._rank.count == 1:
            return BackendChoice(backend=DEFAULT_BACKEND, reason="an earlier version began the training with it")
        ruled = choose_by_rule(
            settings.keras_backend,
            architecture,
            config,
            is_on_cpu=is_on_cpu,
            cores=self._processor.cores,
            nodes=self._rank.count,
            continued=continued,
        )
        if ruled is not None:
            return ruled
        revision = settings.git_revision or checkout_revision()
        calibration = Calibration(architecture, config, programs, settings.compile_cache, revision, self._processor)
        choice = calibration.choose(self._report, self._context.check_cancelled, self._context.warn)
        metrics = {f"{name}_tokens_per_second": speed for name, speed in choice.tokens_per_second.items()}
        _log.info("calibration: %s", choice.speeds)
        self._context.report(f"calibrated: {choice.backend} ({choice.speeds})", metrics=metrics)
        return choice

    def _report(self, measured: int) -> None:
        self._context.report("calibrating", measured, len(BACKENDS), "backends")
