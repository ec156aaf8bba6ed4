"""What an embedded stack costs while nobody asks anything of it, by process.

    .venv/bin/python benchmarks/idle.py [--seconds 60] [--settle 20] [--page]

Starts `gpt2 stack up` in a new folder on free ports, waits until all is ready and has settled, and compares what
the operating system has counted for each process and its children before and after. `--page` measures a second time
with the dashboard's stream of changes open, as a browser with the page has it. Linux only.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from gpt2_orchestration.stack.record import ProcessState, running_record

_START_SECONDS = 300.0
_GOAL = 4.0
"""Per cent of a core that the whole stack may take."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one process of the stack and its children have used since they started, and hold now."""

    cpu_seconds: float
    context_switches: int
    threads: int
    resident_bytes: int


def main() -> None:
    """Measures, and prints the tables."""
    parser = argparse.ArgumentParser(description="What an embedded stack costs while idle, by process.")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to measure")
    parser.add_argument("--settle", type=float, default=20.0, help="how long to wait after all is ready")
    parser.add_argument("--page", action="store_true", help="measure with the dashboard's page open too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpt2-idle-") as temporary, _stack(Path(temporary)) as supervisor:
        folder = Path(temporary)
        pids = _wait_ready(folder, supervisor)
        time.sleep(options.settle)
        print("an idle stack:")
        _measure(pids, options.seconds)
        if options.page:
            with _open_page(folder):
                time.sleep(options.settle)
                print("\nwith the dashboard's page open:")
                _measure(pids, options.seconds)


@contextmanager
def _stack(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Runs the stack as a user does."""
    command = [Path(sys.executable).with_name("gpt2"), "stack", "up", "--folder", folder, "--free-ports"]
    with (folder / "output").open("wb") as output:
        supervisor = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield supervisor
    finally:
        supervisor.send_signal(signal.SIGINT)
        supervisor.wait()


def _wait_ready(folder: Path, supervisor: "subprocess.Popen[bytes]") -> Mapping[str, int]:
    """Waits for all processes. Returns their pids by name, the supervisor's too."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and supervisor.poll() is None:
        record = running_record(folder)
        if record and all(process.state == ProcessState.READY for process in record.processes):
            pids = {process.name: process.identity.pid for process in record.processes if process.identity}
            return {**pids, "supervisor": supervisor.pid}
        time.sleep(0.5)
    raise SystemExit((folder / "output").read_text(encoding="utf-8"))


@contextmanager
def _open_page(folder: Path) -> Iterator[None]:
    """Keeps the stream of changes open. What comes stays in the socket's buffer, which an idle stack does not fill."""
    record = running_record(folder)
    address = next(process.address for process in record.processes if process.name == "dashboard") if record else ""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://{address}/api/v1/events"):
        yield


def _measure(pids: Mapping[str, int], seconds: float) -> None:
    before = _sample(pids)
    began = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - began
    after = _sample(pids)
    print(f"{passed:.0f} s, load average {psutil.getloadavg()[0]:.1f} of {psutil.cpu_count()} cores\n")
    print("| process | CPU, % of a core | context switches/s | threads | resident MB |\n|---|---:|---:|---:|---:|")
    cpu_sum, switches_sum = 0.0, 0.0
    for name, sample in after.items():
        cpu = (sample.cpu_seconds - before[name].cpu_seconds) / passed * 100
        switches = (sample.context_switches - before[name].context_switches) / passed
        cpu_sum += cpu
        switches_sum += switches
        print(f"| {name} | {cpu:.2f} | {switches:.1f} | {sample.threads} | {sample.resident_bytes / 1e6:.0f} |")
    threads = sum(sample.threads for sample in after.values())
    resident = sum(sample.resident_bytes for sample in after.values())
    print(
        f"| all (goal: under {_GOAL:.0f} %) | {cpu_sum:.2f} | {switches_sum:.1f} | {threads} | {resident / 1e6:.0f} |"
    )


def _sample(pids: Mapping[str, int]) -> dict[str, Sample]:
    """What each process has used. The supervisor's children are the others, but for its guard."""
    samples = {name: _sample_tree(psutil.Process(pid), set(pids.values()) - {pid}) for name, pid in pids.items()}
    return dict(sorted(samples.items()))


def _sample_tree(process: psutil.Process, others: set[int]) -> Sample:
    members = [process, *(child for child in process.children() if child.pid not in others)]
    if process.pid not in others and len(members) > 1:
        members += [grandchild for child in members[1:] for grandchild in child.children(recursive=True)]
    # Those that have ended count with who has waited for them, which the supervisor's own, still running, never do.
    return Sample(
        cpu_seconds=sum(sum(member.cpu_times()[:4]) for member in members),
        context_switches=sum(_context_switches(member.pid) for member in members),
        threads=sum(member.num_threads() for member in members),
        resident_bytes=sum(member.memory_info().rss for member in members),
    )


def _context_switches(pid: int) -> int:
    """Of all threads; /proc/PID/status has those of the first alone."""
    lines = (
        line for task in Path(f"/proc/{pid}/task").iterdir() for line in (task / "status").read_text().splitlines()
    )
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


if __name__ == "__main__":
    main()
