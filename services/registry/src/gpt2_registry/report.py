"""The report of a model: one self-contained HTML page with its metrics, training curves, samples and lineage.

It lies in the model's MLflow run beside `curves.png`, `lineage.json` and `samples.txt`. It has no scripts, and its
content security policy lets a browser load nothing.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from gpt2_contracts.metrics import VALIDATION_LOSS, perplexity
from gpt2_contracts.model import ModelDescription
from gpt2_registry.ancestors import Ancestor
from gpt2_registry.curves import Curves
from gpt2_registry.model_metadata import SAMPLES_FILE, ModelMetadata

REPORT_FILE = "report.html"
CURVES_FILE = "curves.png"
LINEAGE_FILE = "lineage.json"

_SHORT_DIGEST = 12
_MAX_VALUE = 300
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --quiet: light-dark(#555, #aaa); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; }
.metrics { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; padding: 0; list-style: none; }
.metrics strong { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.warning { border-inline-start: 4px solid light-dark(#b3261e, #ff8a80); padding: .2rem 1rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } .quiet { color: var(--quiet); }
.curves { background: #fff; border-radius: 6px; padding: .5rem; } .curves svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: start; vertical-align: top; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); }
td { overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
pre { border-inline-start: 3px solid var(--line); padding-inline-start: 1rem; }
"""


def write_report(
    folder: Path, model_name: str, metadata: ModelMetadata, curves: Curves, lineage: Sequence[Ancestor]
) -> None:
    """Writes the report's files into a folder, without those that would be empty.

    Args:
        folder: Where; created when it is missing.
        model_name: Name in the registry.
        metadata: The model.
        curves: Curves of its training.
        lineage: The model and its ancestors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps([item.to_json() for item in lineage], indent=2, ensure_ascii=False)
    (folder / LINEAGE_FILE).write_text(content, encoding="utf-8")
    if samples := metadata.samples_text():
        (folder / SAMPLES_FILE).write_text(samples, encoding="utf-8")
    if plots := curves.plots():
        (folder / CURVES_FILE).write_bytes(plots.png)
    training = _curves(curves, plots.svg) if plots else ""
    page = _report_html(model_name, metadata, training, lineage)
    (folder / REPORT_FILE).write_text(page, encoding="utf-8")


def _report_html(model_name: str, metadata: ModelMetadata, training: str, lineage: Sequence[Ancestor]) -> str:
    sections = (
        "".join(f'<p class="warning"><strong>Warning:</strong> {escape(text)}</p>' for text in metadata.warnings),
        _metrics(metadata.description),
        _section("Training", training),
        _section("Samples", "".join(f'<pre dir="auto">{escape(text)}</pre>' for text in metadata.description.samples)),
        _section("Made from", _lineage(lineage)),
        _section("Parameters", _table(("parameter", "value"), sorted(metadata.parameters().items()))),
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{escape(model_name)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1 dir="auto">{escape(model_name)}</h1>
<p class="quiet">GPT-2 · model {metadata.artifact.digest[:_SHORT_DIGEST]}</p>
{"".join(sections)}
</body>
</html>
"""


def _metrics(model: ModelDescription) -> str:
    """The main metrics, each with its unit."""
    loss = model.validation_loss
    shown = [
        (_decimal(loss), "validation loss, nats per token"),
        ("" if loss is None else f"{perplexity(loss):,.2f}", "perplexity"),
        (_decimal(model.validation_bits_per_byte), "bits per byte"),
        (_decimal(model.initial_validation_loss), "validation loss before training"),
        (_decimal(model.last_validation_loss), "validation loss at the end of the training"),
        (_count(model.parameters), "parameters"),
        (_count(model.step), "steps"),
        (_count(model.last_step), "steps at the end of the training"),
    ]
    items = (f"<li><strong>{escape(value)}</strong> {words}</li>" for value, words in shown if value)
    return f'<ul class="metrics">{"".join(items)}</ul>'


def _curves(curves: Curves, svg: str) -> str:
    points = curves.points(VALIDATION_LOSS)
    summary = f"Validation loss over {len(points)} measurements." if points else "No validation loss was logged."
    return f'<div class="curves" role="img" aria-label="Curves of the training. {summary}">{svg}</div>'


def _lineage(lineage: Sequence[Ancestor]) -> str:
    rows = [
        (
            item.kind,
            item.digest[:_SHORT_DIGEST],
            ", ".join(f"{value:,.6g} {name}" for name, value in sorted(item.counts.items())),
            _facts(item.properties),
            _facts(item.producer, ("job_id", "git_revision", "python", "platform", "time")),
            item.uri,
        )
        for item in lineage
    ]
    return _table(("artifact", "digest", "counts", "properties", "made by", "where"), rows)


def _facts(content: Mapping[str, str], names: Iterable[str] | None = None) -> str:
    chosen = sorted(content) if names is None else [name for name in names if content.get(name)]
    return "; ".join(f"{name} {str(content[name])[:_MAX_VALUE]}" for name in chosen)


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>{content}" if content else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _decimal(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
