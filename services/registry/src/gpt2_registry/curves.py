"""Training curves as PNG and SVG: loss, learning rate, gradient norm and speed over the steps."""

import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2_contracts.metrics import (
    GRADIENT_NORM,
    INITIAL_VALIDATION_LOSS,
    LEARNING_RATE,
    LOSS,
    TOKENS_PER_SECOND,
    UNITS,
    VALIDATION_LOSS,
)
from gpt2_registry.model_metadata import MetricPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_POINTS = 4000
_PANEL_INCHES = (5.2, 3.2)
_DOTS_PER_INCH = 130


@dataclass(frozen=True, slots=True)
class _Panel:
    """One plot: its title, its unit, and the metrics in it with their labels."""

    title: str
    unit: str
    metrics: Mapping[str, str]
    marked: tuple[str, ...] = ()
    """Metrics whose points are marked, as they have few."""


_PANELS = (
    _Panel(
        "Loss",
        UNITS[LOSS],
        {LOSS: "training", VALIDATION_LOSS: "validation", INITIAL_VALIDATION_LOSS: "validation before"},
        (VALIDATION_LOSS, INITIAL_VALIDATION_LOSS),
    ),
    _Panel("Learning rate", "", {LEARNING_RATE: "learning rate"}),
    _Panel("Gradient norm", UNITS[GRADIENT_NORM], {GRADIENT_NORM: "gradient norm"}),
    _Panel("Speed", UNITS[TOKENS_PER_SECOND], {TOKENS_PER_SECOND: "tokens per second"}),
)


@dataclass(frozen=True, slots=True)
class Plots:
    """The same plots in two formats."""

    png: bytes
    svg: str
    """For use inside a page."""


class Curves:
    """Metrics over steps in bounded memory: of a long training every second, fourth … value is kept."""

    def __init__(self) -> None:
        self._curves: dict[str, _Curve] = {}

    def collect(self, points: Iterable[MetricPoint]) -> Iterator[MetricPoint]:
        """Passes points through, and keeps those to be drawn."""
        for point in points:
            self._curves.setdefault(point.name, _Curve()).add(point)
            yield point

    def points(self, name: str) -> Sequence[MetricPoint]:
        """The points of a metric that were kept, the last one always among them; empty where it has none."""
        curve = self._curves.get(name)
        return curve.points() if curve else ()

    def plots(self) -> Plots | None:
        """The plots; None where no metric was collected."""
        panels = [panel for panel in _PANELS if any(self.points(name) for name in panel.metrics)]
        if not panels:
            return None
        _give_matplotlib_a_folder()
        from matplotlib import rc_context  # takes half a second
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        figure, png, svg = self._figure(panels), io.BytesIO(), io.BytesIO()
        # The canvases draw once, where `Figure.savefig` draws twice, and the second keeps the layout of the first: each
        # drawing and each layout takes a quarter of a second. Fixed ids and no date, so that the same curves give the
        # same bytes.
        with rc_context({"svg.hashsalt": "gpt2", "svg.fonttype": "none"}):
            FigureCanvasAgg(figure).print_png(png)  # type: ignore[no-untyped-call]
            figure.set_layout_engine("none")
            FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})  # type: ignore[no-untyped-call]
        # The XML prolog belongs to files that are SVG alone.
        _, tag, rest = svg.getvalue().decode().partition("<svg")
        return Plots(png.getvalue(), tag + rest)

    def _figure(self, panels: Sequence[_Panel]) -> "Figure":
        from matplotlib.figure import Figure

        columns = min(2, len(panels))
        rows = -(-len(panels) // columns)
        size = _PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * rows
        figure = Figure(figsize=size, dpi=_DOTS_PER_INCH, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for panel, place in zip(panels, axes, strict=False):
            self._draw(panel, place)
        for place in list(axes)[len(panels) :]:
            place.set_visible(False)
        return figure

    def _draw(self, panel: _Panel, axes: "Axes") -> None:
        for name, label in panel.metrics.items():
            points = self.points(name)
            marker = "o" if name in panel.marked or len(points) == 1 else ""
            steps, values = [point.step for point in points], [point.value for point in points]
            if points:
                axes.plot(steps, values, label=label, marker=marker, markersize=4, linewidth=1.4)
        axes.set_title(panel.title, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel("step")
        axes.set_ylabel(panel.unit)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(panel.metrics) > 1:
            axes.legend(frameon=False)


class _Curve:
    def __init__(self) -> None:
        self._kept: list[MetricPoint] = []
        self._last: MetricPoint | None = None
        self._stride = 1
        self._seen = 0

    def add(self, point: MetricPoint) -> None:
        if self._seen % self._stride == 0:
            self._kept.append(point)
        if len(self._kept) > _MAX_POINTS:
            self._kept = self._kept[::2]
            self._stride *= 2
        self._seen += 1
        self._last = point

    def points(self) -> Sequence[MetricPoint]:
        if self._last is None or self._kept[-1] is self._last:
            return self._kept
        return [*self._kept, self._last]


def _give_matplotlib_a_folder() -> None:
    """Names a folder for Matplotlib's cache where the home folder cannot be written, as in containers.

    One that it has to find itself, it warns of, and deletes when the process ends, which fails where the job's
    temporary files are gone by then.
    """
    if not os.access(Path.home(), os.W_OK):
        os.environ.setdefault("MPLCONFIGDIR", str(Path(tempfile.gettempdir()) / "matplotlib"))
