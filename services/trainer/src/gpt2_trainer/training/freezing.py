"""The first steps of a training that train the token embedding alone: which weights wait, and until when.

De Vries and Nissim 2021 ("As Good as New", arXiv 2012.05628) fit the lexical embeddings to a language first. A mask
that depends on the step does it, so that a step is compiled once, and a resumed training is exact.
"""

from typing import Any

from keras import ops

from gpt2_trainer.configuration.training import ResolvedTrainingConfig
from gpt2_trainer.model.weights import has_vocabulary


def is_late(config: ResolvedTrainingConfig, name: str) -> bool:
    """Whether a weight is frozen in the first steps: all but the token embedding and an untied head."""
    return bool(config.embeddings_only_steps) and not has_vocabulary(name)


def is_over(config: ResolvedTrainingConfig, step: Any) -> Any:
    """Whether the update after so many trains all weights, bool scalar; the step is an int32 scalar."""
    return step >= config.embeddings_only_steps


def applies_late(config: ResolvedTrainingConfig, step: Any, applied: Any) -> Any:
    """Whether late weights are updated, bool scalar; `applied` says it of the others."""
    return ops.logical_and(applied, is_over(config, step))


def masked(config: ResolvedTrainingConfig, step: Any, gradients: dict[str, Any]) -> dict[str, Any]:
    """Gradients by the name of their weight, 0 where that is frozen, so that norms are of what is trained."""
    return {
        name: ops.where(is_over(config, step), gradient, ops.zeros_like(gradient))
        if is_late(config, name)
        else gradient
        for name, gradient in gradients.items()
    }
