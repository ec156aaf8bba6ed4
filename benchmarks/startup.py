"""What the `gpt2` command takes to start: help, and commands that ask services which have nothing to tell.

    .venv/bin/python benchmarks/startup.py [--runs 10] [--stack FOLDER]

Measures the code that is checked out; run it on two revisions to compare them. Without `--stack` it starts a stack
in a temporary folder on free ports. CPU seconds are beside the seconds that pass, as other work slows both, and
the latter far more. Linux and macOS.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median

from gpt2_orchestration.stack.record import running_record

GPT2 = Path(sys.executable).with_name("gpt2")
COMMANDS: Sequence[tuple[Sequence[str], float | None]] = (
    (("--help",), 0.25),
    (("train", "--help"), None),
    (("jobs", "list"), 0.4),
    (("jobs", "list", "--json"), None),
    (("runs", "list"), 0.4),
    (("models", "list"), None),
    (("doctor",), None),
    (("stack", "status"), None),
)
"""Commands, and the seconds that each may take at most where there is a goal."""

_START_SECONDS = 300.0


def main() -> None:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(description="What the gpt2 command takes to start.")
    parser.add_argument("--runs", type=int, default=10, help="runs of each command")
    parser.add_argument("--stack", type=Path, help="folder of a running stack; default: a new one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpt2-startup-") as temporary:
        folder = options.stack.absolute() if options.stack else Path(temporary) / ".gpt2"
        with nullcontext() if options.stack else _stack(folder):
            rows = [
                (["gpt2", *command], goal, _measure([GPT2, "--stack", folder, *command], options.runs))
                for command, goal in COMMANDS
            ]
            rows.insert(0, (["python", "-c", "pass"], None, _measure([sys.executable, "-c", "pass"], options.runs)))
    print(f"median of {options.runs}, load average {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores\n")
    print("| command | seconds | least | CPU seconds | goal |\n|---|---:|---:|---:|---:|")
    for command, goal, taken in rows:
        seconds, cpu_seconds = zip(*taken, strict=True)
        print(
            f"| `{' '.join(command)}` | {median(seconds):.3f} | {min(seconds):.3f} | {median(cpu_seconds):.3f} "
            f"| {goal or ''} |"
        )


def _measure(command: Sequence[str | Path], runs: int) -> list[tuple[float, float]]:
    """Seconds and CPU seconds of each run, after one that fills the caches of the operating system."""
    return [_run(command) for _ in range(runs + 1)][1:]


def _run(command: Sequence[str | Path]) -> tuple[float, float]:
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return time.monotonic() - began, usage.ru_utime + usage.ru_stime


@contextmanager
def _stack(folder: Path) -> Iterator[None]:
    """Runs a stack as a user does, and waits until all of it is ready."""
    folder.mkdir(parents=True)
    with (folder / "output").open("wb") as output:
        command = [GPT2, "stack", "up", "--folder", folder, "--free-ports"]
        supervisor = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not ((record := running_record(folder)) and all(item.state == "ready" for item in record.processes)):
            if time.monotonic() > deadline or supervisor.poll() is not None:
                raise SystemExit((folder / "output").read_text(encoding="utf-8"))
            time.sleep(0.5)
        yield
    finally:
        supervisor.send_signal(signal.SIGINT)
        supervisor.wait()


if __name__ == "__main__":
    main()
