"""Which errors of a server pass, and how often a call is tried again."""

from collections.abc import Callable
from typing import TypeVar

from pymongo.errors import AutoReconnect, CursorNotFound, OperationFailure, PyMongoError

MAX_CONSECUTIVE_FAILURES = 5
_FIRST_PAUSE_SECONDS = 0.2
# CursorNotFound, QueryPlanKilled, NoSuchSession, CursorKilled, Interrupted, InterruptedAtShutdown.
_LOST_CURSOR_CODES = frozenset({43, 175, 206, 237, 11601, 11600})

Result = TypeVar("Result")


def is_transient(error: PyMongoError) -> bool:
    """Whether another attempt can go well."""
    if isinstance(error, AutoReconnect | CursorNotFound):
        return True
    return isinstance(error, OperationFailure) and error.code in _LOST_CURSOR_CODES


def pause_seconds(failures: int) -> float:
    """How long to wait after so many failures in a row."""
    return _FIRST_PAUSE_SECONDS * 2.0**failures


def retried(call: Callable[[], Result], pause: Callable[[float], None]) -> Result:
    """The result of a call, which is tried again while its errors are transient.

    Args:
        call: What to do; all of it is done again.
        pause: Waits a number of seconds.
    """
    failures = 0
    while True:
        try:
            return call()
        except PyMongoError as error:
            failures += 1
            if not is_transient(error) or failures >= MAX_CONSECUTIVE_FAILURES:
                raise
        pause(pause_seconds(failures))
