"""Loss over tokens of a table's trainings, as an SVG file."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from recipes.trainings import Result


def draw_losses(results: Sequence[Sequence[Result]], title: str, file: Path) -> None:
    """Draws the mean of each recipe's seeds, with the range of all of them around it, without the initial loss."""
    mpl.rcParams["svg.hashsalt"] = title
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for found in results:
        losses = np.array([result.losses for result in found])[:, 1:]
        tokens = np.array(found[0].tokens[1:]) / 1e6
        [line] = axes.plot(tokens, losses.mean(axis=0), label=found[0].recipe)
        axes.fill_between(tokens, losses.min(axis=0), losses.max(axis=0), alpha=0.25, color=line.get_color())
    axes.axhline(np.mean([result.final for result in results[0]]), linestyle=":", color="gray", linewidth=1)
    axes.set(title=title, xlabel="million tokens", ylabel="validation loss, nats a token")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, metadata={"Date": None})
