"""Runs a large corpus of real text through the data path, file to dataset, and watches time and memory of each stage.

    .venv/bin/python benchmarks/data_path.py [--texts FOLDER ...] [--megabytes 2000] [--copies 1]

Each stage is the service's own job in its own process: ImportFiles makes the corpus of JSON lines, TrainTokenizer
a vocabulary of the corpus, EncodeCorpus the dataset of both. Memory is the proportional set size of the process and
all it has started, so that pages they share count once; the second table says it at ten times through each stage, the
first when a tenth of its time is over. A path that holds its memory has the same values from left to right. Without
--texts the text is that of the installed packages. Where there is not enough text for as many megabytes, more copies
make it up: each has the lines of every document in another order.
"""

import argparse
import json
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from real_texts import real_texts

from gpt2.exporter.v1 import exporter_service_pb2
from gpt2.tokenizer.v1 import tokenizer_service_pb2
from gpt2_common.jobs.context import Interruption, JobContext, JobIdentity

STAGES = ("ImportFiles", "TrainTokenizer", "EncodeCorpus")
_FILE_BYTES = 64 << 20
_SAMPLE_SECONDS = 0.1
_POINTS = 10


@dataclass(frozen=True)
class Watched:
    """What was seen of a stage."""

    seconds: float
    memory: Sequence[float]
    """MiB of its processes, at even times."""
    output: dict[str, Any]


def main() -> None:
    """Prints both tables, or does one stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, nargs="+", default=[Path(sysconfig.get_path("purelib"))])
    parser.add_argument("--megabytes", type=int, default=2000, help="size of the text, at the most")
    parser.add_argument("--copies", type=int, default=1, help="how often to take each text, at the most")
    parser.add_argument("--vocabulary-size", type=int, default=32_000)
    parser.add_argument("--sample-megabytes", type=int, default=0, help="text that is trained on; 0: the default")
    parser.add_argument("--stage", nargs=2, metavar=("NAME", "SETTING"), help="for the script's own use")
    arguments = parser.parse_args()
    if arguments.stage:
        print(json.dumps(run_stage(arguments.stage[0], json.loads(arguments.stage[1]))))
        return
    with tempfile.TemporaryDirectory(prefix="gpt2-benchmark-") as name:
        measure(Path(name), arguments)


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    """Writes the files, runs the stages one after another, and prints what was seen."""
    size, count = write_files(folder / "files", documents(arguments.texts, arguments.copies), arguments.megabytes << 20)
    setting = {
        "files": (folder / "files").as_uri(),
        "root": (folder / "artifacts").as_uri(),
        "vocabulary_size": arguments.vocabulary_size,
        "sample_bytes": arguments.sample_megabytes << 20,
    }
    seen = {}
    for stage in STAGES:
        seen[stage] = watch([sys.executable, __file__, "--stage", stage, json.dumps(setting)])
        setting[stage] = seen[stage].output["uri"]
    tokens = seen["EncodeCorpus"].output["counts"]["tokens"]
    print(f"{size / 1e6:,.0f} MB in {count:,} documents; {tokens:,.0f} tokens\n")
    print("| stage | seconds | MB/s | documents/s | peak MiB |\n|:--|--:|--:|--:|--:|")
    for stage, found in seen.items():
        rates = f"{size / 1e6 / found.seconds:,.1f} | {count / found.seconds:,.0f}"
        print(f"| {stage} | {found.seconds:,.1f} | {rates} | {max(found.memory):,.0f} |")
    print("\n| MiB after | " + " | ".join(f"{10 * (n + 1)} %" for n in range(_POINTS)) + " |")
    print("|:--|" + "--:|" * _POINTS)
    for stage, found in seen.items():
        last = len(found.memory) - 1
        points = [found.memory[round(last * (n + 1) / _POINTS)] for n in range(_POINTS)]
        print(f"| {stage} | " + " | ".join(f"{value:,.0f}" for value in points) + " |")


def documents(folders: Sequence[Path], copies: int) -> Iterator[str]:
    """Yields distinct texts, and then copies of them with their lines shuffled."""
    yield from real_texts(folders)
    for copy in range(1, copies):
        for number, text in enumerate(real_texts(folders)):
            lines = text.splitlines(keepends=True)
            random.Random(f"{copy} {number}").shuffle(lines)
            yield "".join(lines)


def write_files(folder: Path, texts: Iterable[str], most: int) -> tuple[int, int]:
    """Writes texts as JSON lines. Returns bytes of their UTF-8, and how many there are."""
    folder.mkdir()
    size = count = 0
    file = None
    for text in texts:
        if file is None or file.tell() > _FILE_BYTES:
            if file is not None:
                file.close()
            file = (folder / f"{count:09d}.jsonl").open("w", encoding="utf-8")
        file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        size += len(text.encode())
        count += 1
        if size >= most:
            break
    if file is not None:
        file.close()
    return size, count


def run_stage(stage: str, setting: dict[str, Any]) -> dict[str, Any]:
    """Does a stage's job in this process. Returns what its output is."""
    request, function, settings = _job(stage, setting)
    identity = JobIdentity(service="benchmark", job_id=stage, run_id="benchmark", request_digest=stage, attempt=1)
    [output] = function(request, JobContext(identity, settings, lambda _: None, Interruption()))
    return {"uri": output.uri, "counts": dict(output.counts)}


def _job(stage: str, setting: dict[str, Any]) -> tuple[Any, Callable[..., Any], Any]:
    """The request, the function and the settings of a stage."""
    if stage == "ImportFiles":
        from gpt2_exporter.jobs import import_files
        from gpt2_exporter.settings import ExporterSettings

        request = exporter_service_pb2.ImportFilesRequest(uris=[setting["files"]])
        return request, import_files, ExporterSettings(artifact_root=setting["root"], allowed_roots=setting["files"])
    from gpt2_tokenizer.jobs import encode_corpus, train_tokenizer
    from gpt2_tokenizer.settings import TokenizerSettings

    settings = TokenizerSettings(artifact_root=setting["root"])
    corpus = setting["ImportFiles"]
    if stage == "TrainTokenizer":
        train = tokenizer_service_pb2.TrainTokenizerRequest(
            corpus_uri=corpus, vocabulary_size=setting["vocabulary_size"], sample_bytes=setting["sample_bytes"]
        )
        return train, train_tokenizer, settings
    encode = tokenizer_service_pb2.EncodeCorpusRequest(corpus_uri=corpus, tokenizer_uri=setting["TrainTokenizer"])
    return encode, encode_corpus, settings


def watch(command: Sequence[str]) -> Watched:
    """Runs a command to its end and notes the memory of its processes meanwhile."""
    began = time.monotonic()
    memory = []
    with tempfile.TemporaryFile("w+") as answer:
        process = subprocess.Popen(command, stdout=answer)
        while process.poll() is None:
            memory.append(sum(map(_proportional_mib, _with_descendants(process.pid))))
            time.sleep(_SAMPLE_SECONDS)
        seconds = time.monotonic() - began
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
        answer.seek(0)
        # A process on its way out has none.
        return Watched(seconds, [value for value in memory if value], json.loads(answer.read().splitlines()[-1]))


def _with_descendants(parent: int) -> list[int]:
    """A process and all that descend from it."""
    found = [parent]
    for pid in found:
        try:
            tasks = list(Path(f"/proc/{pid}/task").iterdir())
            found.extend(int(child) for task in tasks for child in (task / "children").read_text().split())
        except OSError:
            continue
    return found


def _proportional_mib(pid: int) -> float:
    """Proportional set size of a process, MiB; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)


if __name__ == "__main__":
    main()
