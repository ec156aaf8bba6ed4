"""What a TrainModel job publishes: the checkpoint of its best step, and with it the last, to continue from."""

import shutil
from dataclasses import replace
from pathlib import Path

from gpt2_common.artifacts import Artifact
from gpt2_common.errors import FailedPrecondition
from gpt2_common.jobs.context import JobContext
from gpt2_contracts.artifact import CHECKPOINT
from gpt2_contracts.tokenizer import TOKENIZER_FOLDER
from gpt2_contracts.training import TrainingResult
from gpt2_trainer.configuration.architecture import Architecture
from gpt2_trainer.configuration.training import ResolvedTrainingConfig
from gpt2_trainer.formats.checkpoint import (
    ADAPTER,
    CONFIG,
    LAST,
    OPTIMIZER,
    STATE,
    WEIGHTS,
    TrainingState,
    Validation,
    merged,
    write_checkpoint,
)
from gpt2_trainer.jobs.training_inputs import TrainingInputs
from gpt2_trainer.model.backend import environment
from gpt2_trainer.model.weights import count_parameters
from gpt2_trainer.settings import TrainerSettings
from gpt2_trainer.training.checkpoint_manager import CheckpointManager
from gpt2_trainer.training.summary import TrainingSummary, summarize_training


def publish_checkpoint(
    context: JobContext[TrainerSettings],
    inputs: TrainingInputs,
    config: ResolvedTrainingConfig,
    architecture: Architecture,
    state: TrainingState,
    checkpoints: CheckpointManager,
) -> Artifact:
    """Publishes the best checkpoint by validation loss, and the last step where that is another.

    Args:
        context: The job's context.
        inputs: What was trained with.
        config: The training's configuration.
        architecture: Sizes of the model.
        state: The state after the last step.
        checkpoints: Those that the training has kept.

    Raises:
        FailedPrecondition: The training diverged.
    """
    context.report("publishing")
    summary = summarize_training(state, config.first_step)
    if summary is None:
        raise FailedPrecondition(
            "the training diverged: its validation loss is NaN or Inf; start a new job with a lower "
            "learning_rate or a longer warm-up"
        )
    best = summary.best.step
    with context.create(CHECKPOINT, CHECKPOINT, inputs.artifacts) as writer:
        shutil.rmtree(writer.folder)
        writer.folder.mkdir()
        if best > config.first_step:
            checkpoints.verify(best)
            checkpoints.publish(best, writer.folder, is_averaged=bool(config.ema_decay))
        else:
            _publish_start(writer.folder, inputs, architecture, config, summary.best)
        if best != state.step or config.lora is not None or config.ema_decay:
            checkpoints.verify(state.step)
            checkpoints.publish_resumable(state.step, writer.folder / LAST)
            # A training continues from its last step: the optimizer's state of the best one is not needed.
            (writer.folder / OPTIMIZER).unlink(missing_ok=True)
        for text in summary.warnings():
            context.warn(text)
        counts = {"parameters": count_parameters(architecture), "steps": best}
        return writer.commit(counts, checkpoint_properties(architecture, state, summary) | environment())


def _publish_start(
    target: Path, inputs: TrainingInputs, architecture: Architecture, config: ResolvedTrainingConfig, best: Validation
) -> None:
    """Publishes the weights that the training started with, as no step of it is better."""
    if inputs.continued is not None and inputs.parent is not None:
        # The checkpoint that it continues is of its best step, and that is the best of all.
        for name in (CONFIG, WEIGHTS, STATE):
            shutil.copy2(inputs.parent.folder / name, target / name)
        for name in (ADAPTER, TOKENIZER_FOLDER):
            if (inputs.parent.folder / name).is_dir():
                shutil.copytree(inputs.parent.folder / name, target / name)
        return
    start = inputs.initial_checkpoint(architecture, config)
    start = replace(start, state=replace(start.state, validations=[best]))
    write_checkpoint(target, merged(start), inputs.tokenizer)


def checkpoint_properties(architecture: Architecture, state: TrainingState, summary: TrainingSummary) -> dict[str, str]:
    """Properties of the checkpoint's manifest."""
    result = TrainingResult(
        step=summary.best.step,
        last_step=state.step,
        stopped_because=state.stopped_because,
        skipped_steps=state.skipped_steps,
        validation_loss=summary.best.loss,
        last_validation_loss=summary.last.loss,
        initial_validation_loss=summary.initial.loss,
        validation_bits_per_byte=summary.best.bits_per_byte,
        regressed=summary.regressed,
        dataset_digest=state.dataset_digest,
        tokenizer_digest=state.tokenizer_digest,
        architecture=architecture.to_json(),
        warnings=tuple(summary.warnings()),
    )
    return result.to_properties()
