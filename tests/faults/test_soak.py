"""Many consecutive small jobs, by plans and events: no service grows, and no process, file or socket of theirs is left.

GPT2_FAULTS=long runs 200 jobs after the warm-up.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from .runs import SMALL, check, finish, start
from .services import FaultStack

JOBS_OF_A_RUN = 1 + len(SMALL)
WARM_UP_RUNS, RUNS = (10, 67) if os.environ.get("GPT2_FAULTS") == "long" else (3, 6)
_MAX_GROWTH = 0.05


@dataclass(frozen=True)
class Usage:
    """What a service holds."""

    mebibytes: float
    handles: int
    """But those of its database, whose pool opens more as more calls come at once, up to its bound."""
    processes: int


def usage(stack: FaultStack, name: str) -> Usage:
    process = psutil.Process(stack.services[name].process.pid)
    database = [file for file in process.open_files() if ".db" in file.path]
    handles = process.num_fds() - len(database)
    return Usage(process.memory_full_info().uss / 2**20, handles, len(process.children(recursive=True)))


def wait_until(condition: Callable[[], bool]) -> bool:
    """Whether something becomes so within a while."""
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def run(stack: FaultStack, run_id: str) -> None:
    start(stack, run_id, SMALL)
    check(stack, run_id, finish(stack, run_id, "EncodeCorpus"))


def test_small_jobs_leave_memory_handles_and_processes_as_they_were(stack, report):
    for number in range(WARM_UP_RUNS):
        run(stack, f"warm-{number}")
    assert wait_until(lambda: not any(usage(stack, name).processes for name in stack.services))
    before = {name: usage(stack, name) for name in stack.services}
    for number in range(RUNS):
        run(stack, f"soak-{number}")
    nothing_left = wait_until(
        lambda: all(
            (now := usage(stack, name)).processes == 0 and now.handles <= before[name].handles
            for name in stack.services
        )
    )
    after = {name: usage(stack, name) for name in stack.services}
    growth = {name: after[name].mebibytes / before[name].mebibytes - 1 for name in stack.services}
    table: list[list[object]] = [["service", "MiB before", "MiB after", "growth", "handles", "processes"]]
    for name, then in before.items():
        now = after[name]
        memory = [f"{then.mebibytes:.1f}", f"{now.mebibytes:.1f}", f"{growth[name]:.1%}"]
        table.append([name, *memory, f"{then.handles} to {now.handles}", now.processes])
    jobs, before_them = RUNS * JOBS_OF_A_RUN, WARM_UP_RUNS * JOBS_OF_A_RUN
    most = max(growth.values())
    report(f"{jobs} jobs after {before_them}: memory grew by {most:.1%} at most; nothing else is left", table)
    assert nothing_left
    assert max(growth.values()) < _MAX_GROWTH
