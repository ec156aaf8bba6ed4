"""How a training has ended, compared with how it began: which checkpoint is the best, and what to warn of."""

import math
from dataclasses import dataclass

from gpt2_trainer.formats.checkpoint import TrainingState, Validation


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """The validations that tell how a training went. Losses are in nats per token."""

    initial: Validation
    """Of the weights that the training began with."""
    last: Validation
    best: Validation
    """The lowest finite one, the earliest of equals; it may be the initial one, or of a training that was continued."""

    @property
    def ended_worse(self) -> bool:
        """Whether the last loss is higher than the initial one, or is no finite number."""
        return not math.isfinite(self.last.loss) or self.last.loss > self.initial.loss

    @property
    def brought_nothing(self) -> bool:
        """Whether no step of the training was validated with a lower loss than what was there before."""
        return self.best.step <= self.initial.step

    def warnings(self) -> list[str]:
        """What whoever uses the checkpoint should know; empty after a training that went well."""
        found = []
        if self.ended_worse:
            advice = "lower learning_rate or take a longer warm-up"
            if not self.brought_nothing and math.isfinite(self.last.loss):
                advice += ", or end earlier (early_stopping_patience)"
            found.append(
                f"the training ended worse than it began: its validation loss was {self.initial.loss:.4f} at step "
                f"{self.initial.step} and is {self.last.loss:.4f} at step {self.last.step}; {advice}"
            )
        if self.brought_nothing:
            found.append(
                f"the training brought nothing: no step has a lower validation loss than the {self.best.loss:.4f} of "
                f"step {self.best.step}, from before it; the checkpoint holds those weights"
            )
        elif self.ended_worse:
            found.append(
                f"the checkpoint is of step {self.best.step}, whose validation loss {self.best.loss:.4f} is the lowest"
            )
        return found


def outcome_of(state: TrainingState, first_step: int) -> Outcome | None:
    """The outcome of a training that has ended; None where no trained state has a finite validation loss.

    Args:
        state: The state at its end.
        first_step: Updates made before it began, by trainings that it continues.
    """
    own = [item for item in state.validations if item.step >= first_step]
    best = state.best
    if best is None or not any(math.isfinite(item.loss) for item in own if item.step > first_step):
        return None
    return Outcome(initial=own[0], last=own[-1], best=best)
