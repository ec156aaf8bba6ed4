"""How a benchmark talks to the processes that it compares: a setting as JSON, then commands, one line each.

Each contender is a script that runs in its own process and environment and stays up, so that the benchmark can let
them take turns: what slows the machine for a while slows all of them. It imports this file alone.

    > {"n_layer": 12, ...}     the setting
    < {"first_seconds": 9.1, "device": "NVIDIA H200"}   ready: built, compiled and run once
    > 5                        do five units of work (steps, or generations)
    < {"seconds": 1.2, "value": 10.8}
    > peak
    < {"peak_bytes": 2147483648}
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

Work = Callable[[], float]
"""Does one unit of work to its end and returns a figure to check it by, such as the loss."""


class Accelerator(NamedTuple):
    """The GPU that the work is done on."""

    name: str
    """As its maker has it."""
    peak_bytes: int
    """Maximum of its memory that was in use at once."""


def serve(
    build: Callable[[dict[str, Any]], Work], accelerator: Callable[[], Accelerator | None] = lambda: None
) -> None:
    """Answers the benchmark until it closes the pipe.

    Args:
        build: Makes the work of a setting.
        accelerator: Says what the work was done on; None: on CPUs, whose peak is that of the process.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    setting = json.loads(sys.stdin.readline())
    started = time.perf_counter()
    work = build(setting)
    work()
    seconds = time.perf_counter() - started
    gpu = accelerator()
    _answer(answers, {"first_seconds": seconds, "device": gpu.name if gpu else ""})
    for line in sys.stdin:
        if line.strip() == "peak":
            gpu = accelerator()
            peak = gpu.peak_bytes if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            _answer(answers, {"peak_bytes": peak})
            continue
        started = time.perf_counter()
        value = 0.0
        for _ in range(int(line)):
            value = work()
        _answer(answers, {"seconds": time.perf_counter() - started, "value": value})


def _answer(stream: Any, content: dict[str, Any]) -> None:
    stream.write(json.dumps(content) + "\n")
    stream.flush()
