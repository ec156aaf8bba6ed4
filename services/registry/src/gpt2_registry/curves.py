"""The course of a training as pictures: loss, learning rate, gradient norm and speed over the steps."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gpt2_registry.registration import MetricPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_POINTS = 4000
_PANEL_INCHES = (5.2, 3.2)


@dataclass(frozen=True, slots=True)
class _Panel:
    """One plot: its title, its unit, and the names and words of the metrics in it."""

    title: str
    unit: str
    metrics: Mapping[str, str]
    marked: tuple[str, ...] = ()
    """Metrics of few points, which are shown as such."""


_PANELS = (
    _Panel(
        "Loss",
        "nats per token",
        {"loss": "training", "validation_loss": "validation", "initial_validation_loss": "validation before"},
        ("validation_loss", "initial_validation_loss"),
    ),
    _Panel("Learning rate", "", {"learning_rate": "learning rate"}),
    _Panel("Gradient norm", "before clipping", {"gradient_norm": "gradient norm"}),
    _Panel("Speed", "tokens per second", {"tokens_per_second": "tokens per second"}),
)


class Curves:
    """The values of metrics over steps, in bounded memory: of a long training every second, fourth … value is kept."""

    def __init__(self) -> None:
        self._curves: dict[str, _Curve] = {}

    def passing(self, points: Iterable[MetricPoint]) -> Iterator[MetricPoint]:
        """Hands points on, and keeps what is to be shown of them."""
        for point in points:
            self._curves.setdefault(point.name, _Curve()).add(point)
            yield point

    def points(self, name: str) -> Sequence[MetricPoint]:
        """What was kept of a metric, the last value always; empty where there is none."""
        curve = self._curves.get(name)
        return curve.points() if curve else ()

    def png(self) -> bytes:
        """The pictures as PNG; empty where there is nothing to show."""
        return self._picture("png")

    def svg(self) -> str:
        """The pictures as SVG, to stand inside a page; empty where there is nothing to show."""
        # What stands before it is for files that are SVG alone.
        _, tag, rest = self._picture("svg").decode().partition("<svg")
        return tag + rest

    def _picture(self, kind: Literal["png", "svg"]) -> bytes:
        panels = [panel for panel in _PANELS if any(self.points(name) for name in panel.metrics)]
        if not panels:
            return b""
        from matplotlib import rc_context  # takes half a second

        # The same curves give the same bytes.
        with rc_context({"svg.hashsalt": "gpt2", "svg.fonttype": "none"}), io.BytesIO() as file:
            self._figure(panels).savefig(file, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
            return file.getvalue()

    def _figure(self, panels: Sequence[_Panel]) -> "Figure":
        from matplotlib.figure import Figure

        columns = min(2, len(panels))
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(_PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for panel, place in zip(panels, axes, strict=False):
            self._draw(panel, place)
        for place in list(axes)[len(panels) :]:
            place.set_visible(False)
        return figure

    def _draw(self, panel: _Panel, axes: "Axes") -> None:
        for name, words in panel.metrics.items():
            points = self.points(name)
            marker = "o" if name in panel.marked or len(points) == 1 else ""
            steps, values = [point.step for point in points], [point.value for point in points]
            if points:
                axes.plot(steps, values, label=words, marker=marker, markersize=4, linewidth=1.4)
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
        if len(self._kept) > _MOST_POINTS:
            self._kept = self._kept[::2]
            self._stride *= 2
        self._seen += 1
        self._last = point

    def points(self) -> Sequence[MetricPoint]:
        if self._last is None or self._kept[-1] is self._last:
            return self._kept
        return [*self._kept, self._last]
