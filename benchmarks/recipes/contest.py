"""One contest: a baseline and a recipe, each with the best of some learning rates, and then with several seeds."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipes.statistics import Summary
from recipes.trainings import Result, Settings, Trainings


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A recipe to sweep and to train."""

    name: str
    dataset: str
    config: Mapping[str, Any]
    variants: Sequence[Mapping[str, Any]]
    """Fields to sweep, such as learning rates; the best variant is that of the lowest loss with seed 0."""
    checkpoint: str = ""
    """URI of the checkpoint that it starts with; empty: a new model."""


@dataclass(frozen=True)
class Contest:
    """Trains contenders and compares their losses.

    Args:
        trainings: Where results are kept.
        model: Sizes of the model.
        backend: Backend of Keras.
        seeds: Trainings of each contender's best variant.
        loss: The loss of a training that counts.
    """

    trainings: Trainings
    model: Mapping[str, int]
    backend: str
    seeds: int
    loss: Callable[[Result], float]

    def run(self, contenders: Sequence[Contender]) -> list[list[Result]]:
        """Sweeps, then trains all contenders in turns, seed by seed, so that other work slows them alike."""
        best = [self._sweep(contender) for contender in contenders]
        results: list[list[Result]] = [[] for _ in contenders]
        for seed in range(self.seeds):
            for contender, variant, found in zip(contenders, best, results, strict=True):
                found.append(self._train(contender, variant, seed))
        return results

    def _sweep(self, contender: Contender) -> Mapping[str, Any]:
        losses = [self.loss(self._train(contender, variant, 0)) for variant in contender.variants]
        best = contender.variants[losses.index(min(losses))]
        swept = ", ".join(f"{_text(v)} {loss:.3f}" for v, loss in zip(contender.variants, losses, strict=True))
        if len(losses) > 2 and best in (contender.variants[0], contender.variants[-1]):
            swept += " (the best is at an end of the sweep)"
        print(f"\n{contender.name}, seed 0: {swept}", flush=True)
        return best

    def _train(self, contender: Contender, variant: Mapping[str, Any], seed: int) -> Result:
        return self.trainings.run(
            Settings(
                recipe=contender.name,
                dataset=contender.dataset,
                model=self.model,
                config={**contender.config, **variant},
                seed=seed,
                backend=self.backend,
                checkpoint=contender.checkpoint,
            )
        )


def print_table(results: Sequence[Sequence[Result]], loss: Callable[[Result], float]) -> None:
    """Prints a row a contender; ratios and p are to the first. Seconds are medians, as other work disturbs them."""
    base = Summary([loss(result) for result in results[0]])
    base_tokens, base_seconds = results[0][0].tokens[-1], _seconds(results[0])
    print(f"\n| {'recipe':24} | options | tokens | seconds | loss, nats a token | p | tokens to the first's loss |")
    print(f"|:{'-' * 25}|:--|--:|--:|--:|--:|--:|")
    for found in results:
        losses, tokens, seconds = Summary([loss(result) for result in found]), found[0].tokens[-1], _seconds(found)
        p = "" if found is results[0] else f"{losses.p_value(base):.2g}"
        reached = _tokens_to(found, base.mean)
        print(
            f"| {found[0].recipe:24} | {_text(found[0].config)} | {tokens:,} ({tokens / base_tokens:.2f}) "
            f"| {seconds:,.0f} ({seconds / base_seconds:.2f}) | {losses} | {p} "
            f"| {f'{reached:,} ({reached / base_tokens:.2f})' if reached else '-'} |",
            flush=True,
        )


def _seconds(found: Sequence[Result]) -> float:
    return statistics.median(result.seconds for result in found)


def _tokens_to(found: Sequence[Result], loss: float) -> int | None:
    """Tokens by the first validation whose mean loss over the seeds is no higher; None: there is none."""
    means = (statistics.fmean(losses) for losses in zip(*(result.losses for result in found), strict=True))
    return next((tokens for tokens, mean in zip(found[0].tokens, means, strict=True) if mean <= loss), None)


def _text(config: Mapping[str, Any]) -> str:
    """The options that make a recipe, without those of the measurement."""
    left_out = ("sample_length", "save_every", "validate_every", "validation_sequences", "log_every")
    return " ".join(f"{name}={value}" for name, value in config.items() if name not in left_out)
