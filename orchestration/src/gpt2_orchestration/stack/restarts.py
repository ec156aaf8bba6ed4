"""Restarts of crashed processes: exponential backoff, up to a limit of consecutive crashes."""

_FIRST_DELAY_SECONDS = 1.0
_MAX_CONSECUTIVE_CRASHES = 5
_STEADY_SECONDS = 120.0
"""Uptime after which earlier crashes no longer count."""


class RestartPolicy:
    """The crashes of one process. Times are those of `time.monotonic`."""

    def __init__(self) -> None:
        self.crashes = 0
        """Crashes since the stack started."""
        self._consecutive = 0
        self._last_crash = 0.0
        self._due = 0.0

    def record_crash(self, now: float) -> float | None:
        """Records a crash. Returns the delay in seconds before the restart; None beyond the limit."""
        if now - self._last_crash > _STEADY_SECONDS:
            self._consecutive = 0
        self.crashes += 1
        self._consecutive += 1
        self._last_crash = now
        if self._consecutive > _MAX_CONSECUTIVE_CRASHES:
            return None
        delay: float = _FIRST_DELAY_SECONDS * 2 ** (self._consecutive - 1)
        self._due = now + delay
        return delay

    def is_due(self, now: float) -> bool:
        """Whether it may start now."""
        return now >= self._due
