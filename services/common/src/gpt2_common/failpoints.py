"""Failpoints: named places at which tests kill a process, to prove that a crash there loses nothing.

GPT2_FAILPOINT=NAME or NAME:N makes the process kill itself as `kill -9` would, when it reaches the place for the N-th
time (default the first). It does so once: the file named by GPT2_FAILPOINT_FILE, created just before, records it.
Unset, as in production, a failpoint does nothing.
"""

import os
import signal
from itertools import count
from pathlib import Path

_VARIABLE = "GPT2_FAILPOINT"


class _Counters(dict[str, "count[int]"]):
    def __missing__(self, name: str) -> "count[int]":
        return self.setdefault(name, count(1))


def failpoint(name: str, _counters: _Counters = _Counters()) -> None:  # noqa: B008 - one for the process, on purpose
    """A place that a test can name."""
    wanted = os.environ.get(_VARIABLE)
    if not wanted:
        return
    wanted_name, _, number = wanted.partition(":")
    if wanted_name != name or next(_counters[name]) != int(number or 1):
        return
    marker = os.environ.get("GPT2_FAILPOINT_FILE")
    if marker is not None:
        try:
            Path(marker).touch(exist_ok=False)
        except FileExistsError:
            return
    os.kill(os.getpid(), signal.SIGKILL)
