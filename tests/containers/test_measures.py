"""What the stack takes, idle: printed for the README of this folder, and no more than promised."""

import contextlib
import json
import re
from pathlib import Path

# The most that an image adds to its base, in megabytes as Docker counts; the official base has about 125.
_LARGEST = {
    "gpt2-exporter": 275,
    "gpt2-tokenizer": 275,
    "gpt2-registry": 500,
    "gpt2-trainer": 1600,
    "gpt2-dashboard": 75,
    "gpt2-airflow": 650,
}
_BASE = "python:3.11-slim-bookworm"
_IDLE_MEBIBYTES = 2560
_SAMPLES = 10


def test_images_are_no_larger_than_promised(stack, tell):
    base = _size(stack, stack.environment.get("PYTHON_IMAGE", _BASE))
    added = {name: _size(stack, name) - base for name in _LARGEST}
    for name, size in added.items():
        tell(f"{name}: {size + base:.0f} MB, of which {size:.0f} MB on its base")
    assert {name: size for name, size in added.items() if size > _LARGEST[name]} == {}


def _size(stack, image: str) -> float:
    return int(stack.run(["docker", "image", "inspect", "--format", "{{.Size}}", image])) / 1e6


def test_an_idle_stack_takes_no_more_memory_than_promised(stack, tell):
    samples = [_sample(stack) for _ in range(_SAMPLES)]
    held = {name: _held_mebibytes(stack, container.name) for name, container in stack.long_running().items()}
    for name, (memory, _) in samples[-1].items():
        share = sum(sample[name][1] for sample in samples) / _SAMPLES
        tell(f"{name}: {memory:.0f} MiB, of which {held[name]:.0f} are held; {share:.1f} % of a core")
    memory = sum(memory for memory, _ in samples[-1].values())
    share = sum(share for sample in samples for _, share in sample.values()) / _SAMPLES
    tell(f"together: {memory:.0f} MiB, of which {sum(held.values()):.0f} are held; {share:.1f} % of a core")
    assert sum(held.values()) < _IDLE_MEBIBYTES


def _sample(stack) -> dict[str, tuple[float, float]]:
    """MiB, with the cache of files that were read of late, and percents of a core, by service, over about a second."""
    containers = {item.name: name for name, item in stack.long_running().items()}
    lines = stack.run(["docker", "stats", "--no-stream", "--format", "{{json .}}", *containers]).splitlines()
    found = [json.loads(line) for line in lines]
    return {
        containers[item["Name"]]: (_mebibytes(item["MemUsage"].split(" / ")[0]), float(item["CPUPerc"].rstrip("%")))
        for item in found
    }


def _held_mebibytes(stack, container: str) -> float:
    """What the processes of a container hold, and the kernel cannot take back as it can its cache of files."""
    kibibytes = 0
    for pid in stack.run(["docker", "top", container, "-o", "pid"]).split()[1:]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            kibibytes += sum(
                int(number) for number in re.findall(r"^Pss_(?:Anon|Shmem): +(\d+) kB$", rollup, re.MULTILINE)
            )
    return kibibytes / 1024


def _mebibytes(text: str) -> float:
    number = re.match(r"[\d.]+", text)
    assert number
    return float(number[0]) * {"B": 2**-20, "KiB": 2**-10, "MiB": 1, "GiB": 2**10}[text[number.end() :]]
