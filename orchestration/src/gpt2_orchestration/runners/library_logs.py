"""Redirects libraries' logs to a file, so that the terminal shows the pipeline's progress."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def quiet_libraries(log: Path) -> Iterator[None]:
    """Redirects logs of TFX, Beam, TensorFlow and MLflow to a file.

    Args:
        log: The file, which is appended to.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file, _native_output_to(file.fileno()), _logging_to(log):
        yield


@contextmanager
def _logging_to(log: Path) -> Iterator[None]:
    handler = logging.FileHandler(log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:], level = before
        root.setLevel(level)
        handler.close()


@contextmanager
def _native_output_to(descriptor: int) -> Iterator[None]:
    """Redirects descriptor 2, which native code writes to without Python's logging.

    Python's `sys.stderr` keeps writing to the terminal.
    """
    terminal, python_stderr = os.dup(2), sys.stderr
    os.dup2(descriptor, 2)
    sys.stderr = os.fdopen(os.dup(terminal), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    try:
        yield
    finally:
        sys.stderr.close()
        sys.stderr = python_stderr
        os.dup2(terminal, 2)
        os.close(terminal)
