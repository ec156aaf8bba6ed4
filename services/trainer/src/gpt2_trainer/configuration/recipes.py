"""Recipes: defaults of the options that decide how well a new model learns, by name.

`docs/training.md` says which of their values were measured, and how.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from gpt2.trainer.v1 import trainer_service_pb2 as pb

AUTO = "auto"
SMALL_DATA = "small_data"
SCRATCH = "scratch"
COOLDOWN_PERCENT = 40
"""Of the steps of a training with a recipe, that wsd cools down over."""
_EPOCHS_LIKE_NEW_TEXT = 4.0
"""Passes over the text up to which it teaches nearly as much as new text would (Muennighoff et al. 2023,
arXiv 2305.16264): what `small_data` has against learning by heart costs more than it saves until then."""
_SCRATCH: Mapping[str, Any] = {"optimizer": "muon", "schedule": "wsd", "learning_rate": 0.01}
_RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        SCRATCH: _SCRATCH,
        SMALL_DATA: {
            **_SCRATCH,
            "weight_decay": 0.8,
            "reshuffle_documents": True,
            "ema_decay": 0.99,
            "early_stopping_patience": 5,
        },
    }
)
_OF_OPTIMIZER = ("optimizer", "learning_rate", "weight_decay")
"""Options that a request with another optimizer does not take from a recipe."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The recipe that `auto` chose."""

    recipe: str
    """Empty: none."""
    reason: str


def choose_recipe(is_new: bool, parameters: int, train_tokens: int, trained_tokens: int) -> Choice:
    """Chooses the recipe of a training.

    Args:
        is_new: Whether the model starts from random weights.
        parameters: Weights of the model.
        train_tokens: Tokens in the train split.
        trained_tokens: Tokens of all steps, repeated ones included.
    """
    if not is_new:
        return Choice("", "the weights come from a checkpoint")
    epochs, share = trained_tokens / max(1, train_tokens), train_tokens / parameters
    text = f"{train_tokens:,} tokens of text in {epochs:.1f} epochs, {share:.3g} tokens per parameter"
    # Rounded as the text says it: the last step of whole epochs may begin another one.
    return Choice(SMALL_DATA if round(epochs, 1) > _EPOCHS_LIKE_NEW_TEXT else SCRATCH, text)


def with_recipe(config: pb.TrainConfig, recipe: str) -> pb.TrainConfig:
    """A request's configuration with the defaults of a recipe.

    Args:
        config: The configuration; what it sets stays, except for `recipe`.
        recipe: Name of a recipe, in place of `auto` too; empty: none.
    """
    values = dict(_RECIPES.get(recipe, {}))
    if config.optimizer not in ("", values.get("optimizer", "")):
        values = {name: value for name, value in values.items() if name not in _OF_OPTIMIZER}
    filled = pb.TrainConfig(**values)
    filled.MergeFrom(config)
    filled.recipe = recipe
    return filled
