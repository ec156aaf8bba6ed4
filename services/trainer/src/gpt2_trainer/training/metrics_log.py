"""The metrics of a running training: a log line, TensorBoard events and `metrics.jsonl`, all with the same values."""

import json
import logging
import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from gpt2_contracts.metrics import GRADIENT_NORM, LEARNING_RATE, LOSS, TOKENS_PER_SECOND, UNITS, format_line
from gpt2_contracts.training import METRICS_FILE, SAMPLES_TAG

_log = logging.getLogger(__name__)

REPORTED = (
    LOSS,
    LEARNING_RATE,
    GRADIENT_NORM,
    TOKENS_PER_SECOND,
    "mfu",
    "seconds_left",
    "epoch",
    "skipped_steps",
    "embeddings_only",
)
"""Metrics of a report; `mfu` only where the peak of the device is known, `gradient_norm` once an update was applied,
`embeddings_only` where a training has `embeddings_only_steps`."""

NO_TEXT = "(nothing: the text ended at once)"
"""Shown for a sample that has no text."""


class MetricsLog:
    """The logs folder of a training, readable while it grows.

    Args:
        folder: Where to write. Metrics of later steps, which an earlier attempt has left, are removed.
        step: Updates made so far.
    """

    def __init__(self, folder: Path, step: int) -> None:
        metrics = folder / METRICS_FILE
        kept = [line for line in _whole_lines(metrics) if json.loads(line)["step"] <= step] if step else []
        temporary = folder / f".{METRICS_FILE}"
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(metrics)
        self._metrics = metrics.open("a", encoding="utf-8")
        # TensorBoard reads all files of a folder in the order of their names, as one run.
        name = f"events.out.tfevents.{time.time_ns() // 1000:020d}.{socket.gethostname()}.{os.getpid()}"
        self._events = RecordWriter((folder / name).open("wb"))
        self._write(event_pb2.Event(file_version="brain.Event:2"))
        # Makes TensorBoard drop what an earlier attempt has written of later steps.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(step=step + 1, session_log=start))

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes metrics to `metrics.jsonl` and, as scalars, to TensorBoard."""
        self._metrics.write(format_line(step, metrics))
        self._metrics.flush()
        values = [
            summary_pb2.Summary.Value(tag=name, simple_value=value, metadata=_described(name))
            for name, value in metrics.items()
        ]
        self._write(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=values)))

    def _log_text(self, step: int, name: str, text: str) -> None:
        """Writes a text to TensorBoard."""
        metadata = summary_pb2.SummaryMetadata(plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name="text"))
        shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()], tensor_shape=shape)
        value = summary_pb2.Summary.Value(tag=name, metadata=metadata, tensor=tensor)
        self._write(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=[value])))

    def log_samples(self, step: int, texts: Sequence[str]) -> None:
        """Writes generated texts to TensorBoard, as indented blocks, which it shows as they are."""
        seen = (text if text.strip() else NO_TEXT for text in texts)
        blocks = ("\n".join(f"    {line}" for line in text.splitlines()) for text in seen)
        self._log_text(step, SAMPLES_TAG, "\n\n---\n\n".join(blocks))

    def log_hyperparameters(self, name: str, config: Mapping[str, Any]) -> None:
        """Writes the configuration to TensorBoard, as text and for its table of hyperparameters.

        Args:
            name: The training's name there: the same for each attempt, another for each training.
            config: Values by name.
        """
        rows = "\n".join(f"| {option} | {value} |" for option, value in config.items())
        self._log_text(0, "config", f"| option | value |\n|---|---|\n{rows}")
        plain = {key: value if isinstance(value, int | float | str) else str(value) for key, value in config.items()}
        self._write(event_pb2.Event(step=0, summary=hparams_pb(plain, trial_id=name)))

    def close(self) -> None:
        """Closes the files."""
        self._metrics.close()
        self._events.close()

    def _write(self, event: event_pb2.Event) -> None:
        event.wall_time = time.time()
        self._events.write(event.SerializeToString())
        self._events.flush()


class NoMetricsLog(MetricsLog):
    """The log of a node that writes none, as the first one does."""

    def __init__(self) -> None:
        pass

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes nothing."""

    def log_samples(self, step: int, texts: Sequence[str]) -> None:
        """Writes nothing."""

    def log_hyperparameters(self, name: str, config: Mapping[str, Any]) -> None:
        """Writes nothing."""

    def close(self) -> None:
        """Closes nothing."""


def _described(name: str) -> summary_pb2.SummaryMetadata:
    """Name and unit of a metric."""
    unit = UNITS.get(name)
    title = f"{name} ({unit})" if unit else name
    return summary_pb2.SummaryMetadata(
        # Without the plugin's name TensorBoard's fast reader replaces the metadata.
        plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name="scalars"),
        data_class=summary_pb2.DATA_CLASS_SCALAR,
        display_name=title,
        summary_description=unit or "",
    )


def log_report(step: int, steps: int, metrics: Mapping[str, float]) -> None:
    """Writes one line on the training to the log, with the same metrics as fields.

    Args:
        step: Updates made.
        steps: Updates in all.
        metrics: Metrics by the names in `REPORTED`.
    """
    parts = [
        f"loss {metrics['loss']:.4f}",
        f"learning rate {metrics['learning_rate']:.3g}",
        f"gradient norm {metrics.get('gradient_norm', math.nan):.3f}",
        f"{metrics['tokens_per_second']:.0f} tokens/s",
    ]
    if "mfu" in metrics:
        parts.append(f"MFU {metrics['mfu']:.1%}")
    if metrics["skipped_steps"]:
        parts.append(f"{metrics['skipped_steps']:.0f} skipped updates")
    if metrics.get("embeddings_only"):
        parts.append("embeddings only")
    parts.append(f"{format_duration(metrics['seconds_left'])} to go")
    _log.info("step %d of %d: %s", step, steps, ", ".join(parts), extra={"step": step, **metrics})


def format_duration(seconds: float) -> str:
    """A duration for people, such as `1:02:03`."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}"


def _whole_lines(path: Path) -> list[str]:
    """Lines of a file, without one that is incomplete because its writer was killed."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n")]
