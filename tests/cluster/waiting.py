"""Waits for what a cluster does in its own time."""

import time
from collections.abc import Callable
from typing import TypeVar

_SECONDS = 300.0
Found = TypeVar("Found")


def wait_for(
    condition: Callable[[], Found], what: str | Callable[[], str], seconds: float = _SECONDS, interval: float = 0.1
) -> Found:
    """Waits until a condition has a true value, and returns it. Raises AssertionError, which says what was missing.

    Args:
        condition: Evaluated again and again.
        what: What is missing when the time is over.
        seconds: The time.
        interval: Seconds between two evaluations.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(what if isinstance(what, str) else what())
        time.sleep(interval)
    return found
