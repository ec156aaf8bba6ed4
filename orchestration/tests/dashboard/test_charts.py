"""Curves and samples as a real TensorBoard has them, of logs that the trainer's own code has written."""

import math

import pytest

from gpt2_orchestration.client.service_client import ServiceError
from gpt2_orchestration.dashboard.charts import TensorBoard
from gpt2_trainer.training.metrics_log import NO_TEXT, MetricsLog

pytestmark = pytest.mark.process

SAMPLES = [
    "<script>alert(1)</script> &amp; *stars* [link](javascript:alert(1))\n\n    indented\n| a | b |",
    "x" * 50_000,
    "",
    " \n",
]


def test_a_training_has_charts_and_samples(dashboard):
    folder = dashboard.folder / "artifacts" / "run~train-model" / "logs"
    folder.mkdir(parents=True)
    logs = MetricsLog(folder, 0)
    for step in range(1, 2501):
        logs.log_metrics(step, {"loss": math.nan if step == 7 else 5 / step, "epoch": step / 100})
    logs.log_metrics(2500, {"validation_loss": 1.5})
    logs.log_samples(2500, SAMPLES)
    logs.close()

    board = TensorBoard(f"http://{dashboard.tensorboard}")
    found = board.training("run/train-model")
    # The last figure and the sample are the last that it reads.
    while not (found["samples"] and found["charts"] and len(found["charts"][0]["series"]) == 2):
        found = board.training("run/train-model")
    [chart] = found["charts"]
    assert (chart["title"], chart["unit"]) == ("Loss", "nats per token")
    loss, validation = chart["series"]
    assert (loss["name"], validation) == ("loss", {"name": "validation_loss", "points": [[2500, 1.5]]})
    assert len(loss["points"]) <= 1000
    assert loss["points"][-1] == [2500, pytest.approx(0.002)]
    assert all(math.isfinite(value) for _, value in loss["points"])
    [sampled] = found["samples"]
    assert sampled["step"] == 2500
    assert sampled["texts"][0] == SAMPLES[0]
    assert sampled["texts"][1].endswith("… (50,000 characters in all)")
    assert sampled["texts"][2:] == [NO_TEXT, NO_TEXT]


def test_a_training_that_has_not_reported_is_empty(dashboard):
    board = TensorBoard(f"http://{dashboard.tensorboard}")
    assert board.training("run/not-begun") == {"charts": [], "samples": []}


def test_a_tensorboard_that_is_away_is_named():
    with pytest.raises(ServiceError, match="set GPT2_TENSORBOARD_URI"):
        TensorBoard("http://127.0.0.1:1").training("run/train-model")
