"""When a process that crashed is started again: after a delay that doubles, and not for ever."""

_FIRST_DELAY_SECONDS = 1.0
_MOST_IN_A_ROW = 5
_STEADY_SECONDS = 120.0
"""A process that lived this long starts with a clean record."""


class RestartPolicy:
    """The crashes of one process. Times are those of `time.monotonic`."""

    def __init__(self) -> None:
        self.deaths = 0
        """Crashes since the stack began."""
        self._in_a_row = 0
        self._last_death = 0.0
        self._due = 0.0

    def note_death(self, now: float) -> float | None:
        """Notes a crash. Returns the delay in seconds until it is started again; None when it is given up."""
        if now - self._last_death > _STEADY_SECONDS:
            self._in_a_row = 0
        self.deaths += 1
        self._in_a_row += 1
        self._last_death = now
        if self._in_a_row > _MOST_IN_A_ROW:
            return None
        delay: float = _FIRST_DELAY_SECONDS * 2 ** (self._in_a_row - 1)
        self._due = now + delay
        return delay

    def is_due(self, now: float) -> bool:
        """Whether it may start now."""
        return now >= self._due
