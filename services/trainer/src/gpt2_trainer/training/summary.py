"""The summary of a training that has ended: its best checkpoint, its losses, and warnings."""

import math
from dataclasses import dataclass

from gpt2_trainer.formats.checkpoint import TrainingState, Validation


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSummary:
    """First, last and best validation of a training. Losses are in nats per token."""

    initial: Validation
    """Of the weights that the training started with."""
    last: Validation
    best: Validation
    """The lowest finite one, the earliest of equals; it may be the initial one, or of a training that was continued."""

    @property
    def regressed(self) -> bool:
        """Whether the last loss is higher than the initial one, or NaN or Inf."""
        return not math.isfinite(self.last.loss) or self.last.loss > self.initial.loss

    @property
    def is_unimproved(self) -> bool:
        """Whether no validation after the first update has a lower loss than one before it."""
        return self.best.step <= self.initial.step

    def warnings(self) -> list[str]:
        """Warnings for the users of the checkpoint; empty after a training that improved."""
        found = []
        if self.regressed:
            advice = "lower learning_rate or take a longer warm-up"
            if not self.is_unimproved and math.isfinite(self.last.loss):
                advice += ", or end earlier (early_stopping_patience)"
            found.append(
                f"the training ended worse than it began: its validation loss was {self.initial.loss:.4f} at step "
                f"{self.initial.step} and is {self.last.loss:.4f} at step {self.last.step}; {advice}"
            )
        if self.is_unimproved:
            found.append(
                f"the training brought nothing: no step has a lower validation loss than the {self.best.loss:.4f} of "
                f"step {self.best.step}, from before it; the checkpoint holds those weights"
            )
        elif self.regressed:
            found.append(
                f"the checkpoint is of step {self.best.step}, whose validation loss {self.best.loss:.4f} is the lowest"
            )
        return found


def summarize_training(state: TrainingState, first_step: int) -> TrainingSummary | None:
    """Summarizes a training; None where no validation after its first update has a finite loss.

    Args:
        state: The state at its end.
        first_step: Updates made by the trainings that it continues.
    """
    own = [item for item in state.validations if item.step >= first_step]
    best = state.best
    if best is None or not any(math.isfinite(item.loss) for item in own if item.step > first_step):
        return None
    return TrainingSummary(initial=own[0], last=own[-1], best=best)
