"""Structured logs: one JSON object a line on standard error, with the run and job that a line belongs to."""

import json
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

from gpt2_common.escaping import escape_surrogates

_job: ContextVar[dict[str, str] | None] = ContextVar("job", default=None)

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


@contextmanager
def job_log_fields(job_id: str, run_id: str) -> Iterator[None]:
    """Adds a job's ids to every line logged inside."""
    token = _job.set({"job_id": job_id, "run_id": run_id})
    try:
        yield
    finally:
        _job.reset(token)


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON; what was passed as `extra` becomes fields.

    Args:
        service: Value of the field `service`.
    """

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line, without its end."""
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "service": self._service,
            "message": record.getMessage(),
            **(_job.get() or {}),
            **{name: value for name, value in record.__dict__.items() if name not in _STANDARD},
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return escape_surrogates(json.dumps(fields, ensure_ascii=False, default=str), backslash=r"\\")


class RefusedVersionFilter(logging.Filter):
    """Drops the two ERROR lines that kafka-python logs for a broker that does not know its newest ApiVersions.

    Such a broker answers in version 0 with the error UNSUPPORTED_VERSION (KIP-511). The client cannot decode that,
    closes the connection, and retries with an older version, as it should.
    """

    _UNSUPPORTED_VERSION = b"\x00\x23"

    def __init__(self) -> None:
        super().__init__()
        self._refused = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is to be logged."""
        arguments = record.args if isinstance(record.args, tuple) else ()
        if record.name == "kafka.protocol.parser" and len(arguments) == 5:
            kind, answer = getattr(arguments[1], "__name__", ""), arguments[4]
            if kind.startswith("ApiVersionsResponse") and isinstance(answer, bytes):
                # After the correlation id of four bytes.
                self._refused.now = answer[4:6] == self._UNSUPPORTED_VERSION
                return not self._refused.now
        if record.name == "kafka.conn" and getattr(self._refused, "now", False):
            self._refused.now = False
            return "Unable to decode response" not in record.getMessage()
        return True


class RepeatedErrorFilter(logging.Filter):
    """Passes one line a minute of what kafka-python logs while a broker is away: it logs each attempt of each request.

    That the broker is away is logged by the relay and the consumer; here is what else may be wrong with it.
    """

    _SECONDS = 60.0

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._passed_at = -self._SECONDS
        self._dropped = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is to be logged."""
        if not record.name.startswith("kafka.") or record.levelno < logging.ERROR:
            return True
        with self._lock:
            now = time.monotonic()
            if now - self._passed_at < self._SECONDS:
                self._dropped += 1
                return False
            if self._dropped:
                record.dropped_lines = self._dropped
            self._passed_at, self._dropped = now, 0
        return True


def configure_logs(service: str, level: str) -> None:
    """Sends all logs of this process to standard error as JSON. Called once, by a process's entry point."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    handler.addFilter(RepeatedErrorFilter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # These libraries log every connection attempt; the relay logs what matters once.
    for noisy in ("kafka", "urllib3", "alembic"):
        logging.getLogger(noisy).setLevel(max(logging.ERROR, logging.getLevelName(level)))
    refused = RefusedVersionFilter()
    for name in ("kafka.protocol.parser", "kafka.conn"):
        logging.getLogger(name).addFilter(refused)
