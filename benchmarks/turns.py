"""Runs contenders in turns, and makes a table of what they reached."""

import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2_trainer.training.mfu import peak_flops

FOLDER = Path(__file__).parent


@dataclass
class Contender:
    """One process of a comparison."""

    name: str
    command: Sequence[str]
    """Interpreter, script and arguments."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables besides the present ones."""
    rates: list[float] = field(default_factory=list)
    first_seconds: float = 0.0
    device: str = ""
    """Name of the GPU that it computes on; empty: it computes on CPUs."""
    peak_bytes: int = 0
    value: float = 0.0
    _process: Any = None
    _log: Any = None

    def start(self, setting: Mapping[str, Any]) -> None:
        """Starts the process and waits until it has done its work once."""
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open while the process runs
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "PYTHONPATH": str(FOLDER), **self.environment},
        )
        answer = self._ask(json.dumps(setting))
        self.first_seconds, self.device = answer["first_seconds"], answer.get("device", "")

    def turn(self, units: int, tokens_per_unit: float) -> None:
        """Lets it work for a while and notes its tokens per second."""
        answer = self._ask(str(units))
        self.rates.append(units * tokens_per_unit / answer["seconds"])
        self.value = answer["value"]

    def stop(self) -> None:
        """Notes its peak memory and ends it."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self.peak_bytes = self._ask("peak")["peak_bytes"]
        self._process.stdin.close()
        self._process.wait()

    @property
    def rate(self) -> float:
        """Median tokens per second of its turns."""
        return statistics.median(self.rates)

    def _ask(self, line: str) -> dict[str, Any]:
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._log.seek(0)
            raise SystemExit(f"{self.name} ended with status {self._process.wait()}:\n{self._log.read()[-3000:]}")
        content: dict[str, Any] = json.loads(answer)
        return content


def compare(
    contenders: Sequence[Contender],
    setting: Mapping[str, Any],
    rounds: int,
    units: int,
    tokens_per_unit: float,
    flops_per_token: float = 0.0,
) -> None:
    """Lets all take turns and prints the table; the first is ours, and ratios are of it to each other.

    Args:
        contenders: Who takes part.
        setting: What each is to do.
        rounds: Turns of each.
        units: Units of work in a turn.
        tokens_per_unit: Tokens in a unit.
        flops_per_token: Floating-point operations of a token, for MFU; 0: none is printed.
    """
    running: list[Contender] = []
    try:
        for contender in contenders:
            contender.start(setting)
            running.append(contender)
        for _ in range(rounds):
            for contender in running:
                contender.turn(units, tokens_per_unit)
    finally:
        for contender in running:
            contender.stop()
    ours = contenders[0].rate
    print(f"| {'contender':32} | tokens/s | least | most | ours/it | first s | peak GiB | check |")
    print(f"|{'-' * 34}|---:|---:|---:|---:|---:|---:|---:|")
    for one in contenders:
        print(
            f"| {one.name:32} | {one.rate:,.1f} | {min(one.rates):,.1f} | {max(one.rates):,.1f} "
            f"| {ours / one.rate:.2f} "
            f"| {one.first_seconds:.1f} | {one.peak_bytes / 2**30:.2f} | {one.value:.4f} |",
            flush=True,
        )
    if flops_per_token:
        _print_mfu(contenders, setting["precision"], flops_per_token)


def _print_mfu(contenders: Sequence[Contender], precision: str, flops_per_token: float) -> None:
    """Prints MFU of those on GPUs whose peak is known."""
    print(
        f"\nMFU = tokens/s x {flops_per_token / 1e9:.3f} GFLOP a token (6 N + 12 L H Q T, as PaLM has it) / peak "
        f"FLOP/s in {precision}:"
    )
    for one in contenders:
        peak = peak_flops([one.device], precision, 0.0) if one.device else 0.0
        text = f"{one.rate * flops_per_token / peak:.1%} of {peak / 1e12:g} TFLOP/s" if peak else "no peak is known"
        print(f"- {one.name} on {one.device or 'CPUs'}: {text}", flush=True)
