"""How a training has ended, compared with how it began."""

import math

import pytest

from gpt2_trainer.formats.checkpoint import TrainingState, Validation
from gpt2_trainer.training.summary import summarize_training


def outcome(*losses, first_step=0):
    """The outcome of a training with a validation each step."""
    validations = [Validation(step=step, loss=loss) for step, loss in enumerate(losses)]
    return summarize_training(TrainingState(step=len(losses) - 1, validations=validations), first_step)


@pytest.mark.parametrize(
    ("losses", "best", "worse", "words"),
    [
        ((6.0, 5.0, 4.0), 2, False, []),
        ((6.0, 4.0, 5.0), 1, False, []),
        ((6.0, 4.0, 7.0), 1, True, ["ended worse", "early_stopping_patience", "is of step 1"]),
        ((6.0, 9.0, 22.9), 0, True, ["was 6.0000 at step 0 and is 22.9000 at step 2", "brought nothing"]),
        ((6.0, 5.0, math.nan), 1, True, ["is nan at step 2", "is of step 1"]),
        ((6.0, 5.0, math.inf), 1, True, ["is inf at step 2"]),
        ((6.0, 6.0), 0, False, ["brought nothing"]),
        ((math.nan, 5.0), 1, False, []),
    ],
    ids=("better", "overfitted", "worse", "ruined", "NaN", "infinite", "unchanged", "from NaN"),
)
def test_a_training_is_judged_by_how_it_ended(losses, best, worse, words):
    found = outcome(*losses)
    assert (found.best.step, found.regressed) == (best, worse)
    text = "\n".join(found.warnings())
    assert all(word in text for word in words)
    assert bool(text) == bool(words)


def test_a_continued_training_is_compared_with_where_it_began():
    found = outcome(6.0, 3.0, 4.0, 5.0, first_step=2)
    assert found.initial == Validation(step=2, loss=4.0)
    assert found.regressed
    assert found.best.step == 1
    assert "brought nothing" in "\n".join(found.warnings())


def test_without_a_finite_loss_after_the_first_step_there_is_no_outcome():
    assert outcome(6.0, math.nan, math.inf) is None
    assert outcome(6.0, 5.0, math.nan, first_step=1) is None
