"""Metrics and samples of a training, during and after it, from TensorBoard.

TensorBoard reads the artifact root, where a training writes its logs from the first step in a folder named after its
job; the dashboard itself opens no file. It calls the API of TensorBoard's own page: `/data/plugin/scalars` and `text`.
"""

import json
import math
import urllib.parse
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import grpc

from gpt2_contracts.artifact import LOGS, job_folder_name
from gpt2_contracts.metrics import (
    GRADIENT_NORM,
    LEARNING_RATE,
    LOSS,
    TOKENS_PER_SECOND,
    UNITS,
    VALIDATION_BITS_PER_BYTE,
    VALIDATION_LOSS,
    VALIDATION_PERPLEXITY,
)
from gpt2_contracts.training import SAMPLES_TAG
from gpt2_orchestration.client.service_client import ServiceError
from gpt2_orchestration.dashboard.serialization import Json, shorten
from gpt2_proxies import open_url, web_proxy_note

_SECONDS = 10.0
_MAX_RESPONSE_BYTES = 64 * 2**20
_MAX_POINTS = 1000

CHARTS: Sequence[tuple[str, str, tuple[str, ...]]] = (
    ("Loss", UNITS[LOSS], (LOSS, VALIDATION_LOSS)),
    ("Validation perplexity", "per token", (VALIDATION_PERPLEXITY,)),
    ("Validation bits per byte", "of text", (VALIDATION_BITS_PER_BYTE,)),
    ("Learning rate", UNITS[LEARNING_RATE], (LEARNING_RATE,)),
    ("Gradient norm", UNITS[GRADIENT_NORM], (GRADIENT_NORM,)),
    ("Speed", UNITS[TOKENS_PER_SECOND], (TOKENS_PER_SECOND,)),
)
"""Title, unit, and names of the metrics that share the axes, of each chart."""


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
        name = f"{job_folder_name(job_id)}/{LOGS}"
        known = self._get("scalars/tags").get(name, {})
        charts = []
        for title, unit, metrics in CHARTS:
            series = [self._series(name, metric) for metric in metrics if metric in known]
            if series:
                charts.append({"title": title, "unit": unit, "series": series})
        texts = self._get("text/tags").get(name, ())
        return {"charts": charts, "samples": self._samples(name) if SAMPLES_TAG in texts else []}

    def _series(self, name: str, metric: str) -> Json:
        points = self._get("scalars/scalars", run=name, tag=metric)
        # TensorBoard encodes NaN and infinities as text.
        finite = [[step, value] for _, step, value in points if isinstance(value, int | float) and math.isfinite(value)]
        stride = max(1, math.ceil(len(finite) / _MAX_POINTS))
        # Counted from the end, so that the last point stays.
        return {"name": metric, "points": finite[::-1][::stride][::-1]}

    def _samples(self, name: str) -> list[Json]:
        rounds = self._get("text/text", run=name, tag=SAMPLES_TAG)
        return [{"step": item["step"], "texts": _plain_texts(item["text"])} for item in rounds]

    def _get(self, path: str, **query: str) -> Any:
        url = f"{self._address}/data/plugin/{path}?{urllib.parse.urlencode(query)}"
        try:
            with open_url(url, _SECONDS) as answer:
                return json.loads(answer.read(_MAX_RESPONSE_BYTES))
        except (OSError, ValueError) as error:
            message = (
                f"TensorBoard at {self._address} does not return the metrics ({error}): "
                f"start it (`gpt2 stack up`), or set GPT2_TENSORBOARD_URI to its address{web_proxy_note(self._address)}"
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
