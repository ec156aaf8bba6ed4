"""Figures and samples of a training, while it runs and after it, as TensorBoard has them.

TensorBoard reads the artifact root, where a training's logs lie from its first step in a folder named after its job;
the dashboard itself opens no file. Its interface is that of its own page: `/data/plugin/scalars`, `/data/plugin/text`.
"""

import json
import math
import urllib.parse
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import grpc

from gpt2_orchestration.client import ServiceError
from gpt2_orchestration.dashboard.describing import Json, shorten
from gpt2_orchestration.proxies import open_url, web_proxy_note

_SECONDS = 10.0
_LARGEST_ANSWER = 64 * 2**20
_MOST_POINTS = 1000
_SAMPLES = "samples"

CHARTS: Sequence[tuple[str, str, tuple[str, ...]]] = (
    ("Loss", "nats per token", ("loss", "validation_loss")),
    ("Validation perplexity", "per token", ("validation_perplexity",)),
    ("Learning rate", "per update", ("learning_rate",)),
    ("Gradient norm", "before clipping", ("gradient_norm",)),
    ("Speed", "tokens per second", ("tokens_per_second",)),
)
"""What is drawn: title, unit, and names of the figures that share the axes."""


class TensorBoard:
    """One TensorBoard.

    Args:
        address: Where it is, without a slash at the end.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    def training(self, job_id: str) -> Json:
        """Charts and samples of a training, as far as it is.

        Returns:
            `charts`, each with `title`, `unit` and `series` of `name` and `points` (step, value); and `samples`, each
            with `step` and `texts`; the latest last. Both are empty for a training that has not reported yet.

        Raises:
            ServiceError: TensorBoard does not answer.
        """
        name = f"{job_id.replace('/', '~')}/logs"
        known = self._get("scalars/tags").get(name, {})
        charts = []
        for title, unit, figures in CHARTS:
            series = [self._series(name, figure) for figure in figures if figure in known]
            if series:
                charts.append({"title": title, "unit": unit, "series": series})
        texts = self._get("text/tags").get(name, ())
        return {"charts": charts, "samples": self._samples(name) if _SAMPLES in texts else []}

    def _series(self, name: str, figure: str) -> Json:
        points = self._get("scalars/scalars", run=name, tag=figure)
        # The logs say what is no finite number as text.
        finite = [[step, value] for _, step, value in points if isinstance(value, int | float) and math.isfinite(value)]
        stride = max(1, math.ceil(len(finite) / _MOST_POINTS))
        # Counted from the end, so that the last point stays.
        return {"name": figure, "points": finite[::-1][::stride][::-1]}

    def _samples(self, name: str) -> list[Json]:
        rounds = self._get("text/text", run=name, tag=_SAMPLES)
        return [{"step": item["step"], "texts": _plain_texts(item["text"])} for item in rounds]

    def _get(self, path: str, **query: str) -> Any:
        url = f"{self._address}/data/plugin/{path}?{urllib.parse.urlencode(query)}"
        try:
            with open_url(url, _SECONDS) as answer:
                return json.loads(answer.read(_LARGEST_ANSWER))
        except (OSError, ValueError) as error:
            message = (
                f"TensorBoard at {self._address} does not give the curves ({error}): "
                f"start it (`gpt2 stack up`), or correct GPT2_TENSORBOARD_URI{web_proxy_note(self._address)}"
            )
            raise ServiceError(message, grpc.StatusCode.UNAVAILABLE) from error


class _Texts(HTMLParser):
    """Takes the texts out of the page that TensorBoard makes of them: each is a block of code."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: list[str] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:  # noqa: ARG002
        """Begins a text."""
        if tag == "pre":
            self.texts.append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        """Ends a text."""
        if tag == "pre":
            self._inside = False

    def handle_data(self, data: str) -> None:
        """Takes a part of a text."""
        if self._inside:
            self.texts[-1] += data


def _plain_texts(page: str) -> list[str]:
    parser = _Texts()
    parser.feed(page)
    parser.close()
    return [shorten(text.removesuffix("\n")) for text in parser.texts]
