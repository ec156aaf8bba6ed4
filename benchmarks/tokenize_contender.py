"""One measured process of `benchmarks/tokenizer.py`: does one thing once, on text not seen before, and says how long.

    python tokenize_contender.py corpus NAME THREADS SETTING     a corpus to a dataset (`ours`), or the encoder alone:
                                                                 all texts in one call (`call`), in batches as it comes
                                                                 (`bare`), or in batches, a thread a call (`single`)
    python tokenize_contender.py library NAME THREADS SETTING    a library on texts in memory, and whether exact
    python tokenize_contender.py train NAME THREADS SETTING      a library's training

SETTING is a JSON file with `corpus`, `tokenizer`, `root`, `openai`, `texts` and `vocabulary_size`. The answer is a line
of JSON.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

TIKTOKEN_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
OPENAI_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_BATCH_CHARACTERS = 1 << 20

Setting = dict[str, Any]
Lists = Callable[[Sequence[str]], list[list[int]]]


def main() -> None:
    """Runs what the arguments name."""
    what, name, threads, setting_file = sys.argv[1:]
    setting = json.loads(Path(setting_file).read_text())
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    os.environ |= {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true" if int(threads) > 1 else "false"}
    answer = {"corpus": _corpus, "library": _library, "train": _train}[what](name, int(threads), setting)
    answer["peak_mib"] = _peak_mib()
    print(json.dumps(answer))


def _peak_mib() -> float:
    """Most memory of this process; what `getrusage` says begins at its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _corpus(name: str, threads: int, setting: Setting) -> dict[str, Any]:
    if name == "single":
        os.environ["FASTOKENS_BPE_THREADS"] = "1"
    return _ours(setting) if name == "ours" else _bare(threads, setting, in_batches=name != "call")


def _ours(setting: Setting) -> dict[str, Any]:
    from gpt2.tokenizer.v1 import tokenizer_service_pb2 as pb
    from gpt2_common.jobs.context import Interruption, JobContext, JobIdentity
    from gpt2_tokenizer.jobs import encode_corpus
    from gpt2_tokenizer.settings import TokenizerSettings

    name = f"bench-{os.getpid()}"
    identity = JobIdentity(service="tokenizer", job_id=name, run_id=name, request_digest=name, attempt=1)
    settings = TokenizerSettings(artifact_root=setting["root"])
    context = JobContext(identity, settings, lambda _: None, Interruption())
    request = pb.EncodeCorpusRequest(corpus_uri=setting["corpus"], tokenizer_uri=setting["tokenizer"])
    gc.freeze()  # As a job's process does.
    started, processor = time.perf_counter(), time.process_time()
    [output] = encode_corpus(request, context)
    seconds = {"seconds": time.perf_counter() - started, "processor_seconds": time.process_time() - processor}
    return {**seconds, "tokens": output.counts["tokens"]}


def _bare(threads: int, setting: Setting, *, in_batches: bool) -> dict[str, Any]:
    import fastokens
    import pyarrow.parquet as pq

    folder = Path(setting["corpus"].removeprefix("file://"))
    texts = [text for path in sorted(folder.glob("*.parquet")) for text in pq.read_table(path)["text"].to_pylist()]
    batches = _batches(texts) if in_batches else [texts]
    tokenizer = fastokens.Tokenizer.from_json_str(_tokenizer_json(setting))
    started, processor = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(threads) as pool:
        sizes = pool.map(lambda batch: len(tokenizer.encode_batch_flat(batch)[0]) // 4, batches)
        tokens = sum(sizes) + len(texts)
    seconds = {"seconds": time.perf_counter() - started, "processor_seconds": time.process_time() - processor}
    return {**seconds, "tokens": tokens}


def _library(name: str, threads: int, setting: Setting) -> dict[str, Any]:
    texts = json.loads(Path(setting["texts"]).read_text())
    measured, lists = LIBRARIES[name](setting, threads)
    batches = _batches(texts)
    started = time.perf_counter()
    for batch in batches:
        measured(batch)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "verdict": _verdict(lists, setting) if threads == 1 else ""}


def _verdict(lists: Lists, setting: Setting) -> str:
    """Compares with tiktoken, whose regular expression and merges are OpenAI's."""
    reference = _tiktoken_encoding(setting)
    hostile = [
        "<|endoftext|>",
        "a<|endof<|endoftext|>text|>b",
        "\r\n\r\n \u00a0\u0085x",
        "👩‍👩‍👧‍👦",
        "a" * 10_000,
        " " * 10_000,
    ]
    texts = json.loads(Path(setting["texts"]).read_text())[:500] + hostile
    if lists(texts) != reference.encode_ordinary_batch(texts):
        return "differs on ordinary or hostile text"
    points = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    wrong = 0
    for begin in range(0, len(points), 1 << 16):
        some = [f"'s{chr(point)}'ll 9{chr(point)}" for point in points[begin : begin + (1 << 16)]]
        expected = reference.encode_ordinary_batch(some)
        wrong += sum(ours != theirs for ours, theirs in zip(lists(some), expected, strict=True))
    return f"differs for {wrong} characters" if wrong else "exact"


def _train(name: str, _threads: int, setting: Setting) -> dict[str, Any]:
    texts = json.loads(Path(setting["texts"]).read_text())
    size = setting["vocabulary_size"]
    train: dict[str, Callable[[], object]] = {
        "ours": lambda: _train_ours(texts, size),
        "rustbpe": lambda: _train_rustbpe(texts, size),
        "gigatoken": lambda: _train_gigatoken(texts, size),
        "tokenizers": lambda: _train_tokenizers(texts, size),
        "bpeasy": lambda: _train_bpeasy(texts, size),
    }
    work = train[name]
    # What takes its time is the training, not the import.
    import_module("gpt2_tokenizer.vocabulary.training" if name == "ours" else name)
    gc.freeze()  # As a job's process does.
    started = time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - started}


def _train_ours(texts: list[str], size: int) -> None:
    from gpt2_tokenizer.vocabulary.training import train_vocabulary

    train_vocabulary(lambda: texts, size + 1, 2)


def _train_rustbpe(texts: list[str], size: int) -> None:
    import rustbpe

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter(texts), size, 8192, OPENAI_PATTERN)
    trainer.get_mergeable_ranks()


def _train_gigatoken(texts: list[str], size: int) -> None:
    from gigatoken.gigatoken_rs import train_bpe

    train_bpe("\x00\x01".join(texts).encode(), size, [], separator=b"\x00\x01")


def _train_tokenizers(texts: list[str], size: int) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)


def _train_bpeasy(texts: list[str], size: int) -> None:
    import bpeasy

    bpeasy.train_bpe_stream(iter(texts), OPENAI_PATTERN, 128, size, 1000)


def _fastokens(setting: Setting, _threads: int) -> tuple[Callable[[Sequence[str]], object], Lists]:
    import fastokens

    tokenizer = fastokens.Tokenizer.from_json_str(_tokenizer_json(setting))

    def lists(texts: Sequence[str]) -> list[list[int]]:
        ids, offsets = (
            np.frombuffer(part, kind)
            for part, kind in zip(tokenizer.encode_batch_flat(list(texts)), (np.uint32, np.int64), strict=True)
        )
        return [ids[begin:end].tolist() for begin, end in pairwise(offsets)]

    return tokenizer.encode_batch_flat, lists


def _gigatoken(setting: Setting, _threads: int) -> tuple[Callable[[Sequence[str]], object], Lists]:
    import gigatoken

    tokenizer = gigatoken.Tokenizer.from_json(_tokenizer_json(setting))
    return tokenizer.encode_batch, tokenizer.encode_batch_list


def _riptoken(setting: Setting, _threads: int) -> tuple[Callable[[Sequence[str]], object], Lists]:
    import riptoken

    encoder = riptoken.CoreBPE(_tiktoken_encoding(setting)._mergeable_ranks, {}, TIKTOKEN_PATTERN)
    return encoder.encode_ordinary_batch, encoder.encode_ordinary_batch


def _tiktoken(setting: Setting, threads: int) -> tuple[Callable[[Sequence[str]], object], Lists]:
    encoding = _tiktoken_encoding(setting)

    def lists(texts: Sequence[str]) -> list[list[int]]:
        return encoding.encode_ordinary_batch(list(texts), num_threads=threads)

    return lists, lists


def _tokenizers(setting: Setting, _threads: int) -> tuple[Callable[[Sequence[str]], object], Lists]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(_tokenizer_json(setting))
    return tokenizer.encode_batch_fast, lambda texts: [item.ids for item in tokenizer.encode_batch_fast(list(texts))]


LIBRARIES = {
    "fastokens": _fastokens,
    "gigatoken": _gigatoken,
    "riptoken": _riptoken,
    "tiktoken": _tiktoken,
    "tokenizers": _tokenizers,
}
TRAINERS = ("ours", "rustbpe", "gigatoken", "tokenizers", "bpeasy")


def _tiktoken_encoding(setting: Setting) -> Any:
    import tiktoken
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    folder = Path(setting["openai"])
    ranks = data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json"))
    return tiktoken.Encoding("gpt2", pat_str=TIKTOKEN_PATTERN, mergeable_ranks=ranks, special_tokens={})


def _tokenizer_json(setting: Setting) -> str:
    """A `tokenizer.json` without the end token, so that its name in a text is text."""
    content = json.loads((Path(setting["tokenizer"].removeprefix("file://")) / "tokenizer.json").read_text())
    return json.dumps(content | {"added_tokens": []})


def _batches(texts: Sequence[str]) -> list[list[str]]:
    batches: list[list[str]] = [[]]
    characters = 0
    for text in texts:
        if characters >= _BATCH_CHARACTERS:
            batches.append([])
            characters = 0
        batches[-1].append(text)
        characters += len(text)
    return batches


if __name__ == "__main__":
    main()
