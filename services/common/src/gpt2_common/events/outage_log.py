"""What is logged of an outage that is retried every few seconds: its begin, a reminder once a minute, and its end."""

import logging
import time

_REMINDER_SECONDS = 60.0


class OutageLog:
    """The outages of one thread's work, as it logs them.

    Args:
        log: Where to.
        expected: Errors that an outage has. Any other is a defect, and logged each time with its traceback.
        ended: The line at the end of an outage.
    """

    def __init__(self, log: logging.Logger, expected: tuple[type[Exception], ...], ended: str) -> None:
        self._log = log
        self._expected = expected
        self._ended = ended
        self._away = False
        self._logged_at = 0.0

    def note_failure(self, error: Exception, message: str) -> None:
        """Logs the message, unless it was logged less than a minute ago in the same outage."""
        expected = isinstance(error, self._expected)
        now = time.monotonic()
        if not self._away or not expected or now - self._logged_at > _REMINDER_SECONDS:
            self._logged_at = now
            self._log.warning("%s", message, exc_info=None if expected else error)
        self._away = True

    def note_success(self) -> None:
        """Ends an outage, if there is one."""
        if self._away:
            self._log.info("%s", self._ended)
        self._away = False
