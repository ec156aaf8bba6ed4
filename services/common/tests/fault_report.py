"""What the fault suite says at its end: of each thing that was promised, under which fault, and what was seen of it.

The promise is the test's name, the fault its parameters; what was seen the test says itself.
"""

import re
from collections.abc import Iterable, Sequence

import pytest

SEEN = "seen"
_SUITE = "tests/faults/"
_MAX_PROMISE_LENGTH = 100


def format_table(rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a table, whose columns are as wide as they need."""
    widths = [max(len(str(cell)) for cell in column) + 2 for column in zip(*rows, strict=True)]
    return ["".join(f"{cell!s:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def summarize(reports: Iterable[pytest.TestReport]) -> list[str]:
    """Lines that say what became of the tests of that suite; none where it has not run."""
    rows = [_row(report) for report in reports if _SUITE in report.nodeid and _counts(report)]
    return format_table([("promised", "fault", "seen"), *rows]) if rows else []


def _counts(report: pytest.TestReport) -> bool:
    noted = report.when == "call" and any(key == SEEN for key, _ in report.user_properties)
    return noted or report.outcome != "passed"


def _row(report: pytest.TestReport) -> tuple[str, str, str]:
    name, _, parameters = report.nodeid.rpartition("::")[2].partition("[")
    promise = re.sub(r"^test_", "", name).replace("_", " ")
    seen = "; ".join(str(value) for key, value in report.user_properties if key == SEEN)
    if report.outcome == "failed":
        seen = f"FAILED in its {report.when}: see above"
    elif report.outcome == "skipped":
        seen = f"not tried: {report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr}"
    return promise[:_MAX_PROMISE_LENGTH], parameters.removesuffix("]"), seen
