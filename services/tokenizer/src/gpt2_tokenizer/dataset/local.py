"""Encodes a corpus on this machine: one thread reads and writes, others encode, and blocks come out in order."""

import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from gpt2_common.artifacts import Artifact
from gpt2_tokenizer.corpus.reading import read_batches
from gpt2_tokenizer.dataset.blocks import encode_block
from gpt2_tokenizer.dataset.shards import Block
from gpt2_tokenizer.encoder import Encoder

# The most that waits for its turn, so that no worker does while the corpus is read: text, of which one document may be
# more, and batches, which may be of short documents.
_WAITING_BYTES_A_WORKER = 16 << 20
_WAITING_BATCHES_A_WORKER = 8


def limit_library_threads(threads: int, callers: int = 1) -> None:
    """Tells the libraries how many threads to use. They read it once, when they first encode.

    Args:
        threads: Threads in all.
        callers: Threads that call them at once. fastokens then works on the caller's, where its cache is: sharing a
            call out takes a quarter more processor time, as measured on two cores.
    """
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("FASTOKENS_BPE_THREADS", str(max(1, threads // callers)))


def local_blocks(
    encoder: Encoder, corpus: Artifact, validation_fraction: float, begins: Mapping[str, int], workers: int
) -> Iterator[dict[str, Block]]:
    """Yields the encoded documents of a corpus, in its order, whatever the number of workers.

    Args:
        encoder: Encodes texts.
        corpus: The corpus.
        validation_fraction: Share of texts for validation.
        begins: Number of the first document that each split still needs.
        workers: Threads that encode.
    """
    begins = dict(begins)  # The caller's may move on while this goes on.
    waiting: deque[tuple[int, Future[dict[str, Block]]]] = deque()
    waiting_bytes = 0
    most_bytes, most_batches = _WAITING_BYTES_A_WORKER * workers, _WAITING_BATCHES_A_WORKER * workers
    with ThreadPoolExecutor(workers, "encode") as pool:
        try:
            for batch in read_batches(corpus, min(begins.values())):
                size = batch.size
                while waiting and (len(waiting) > most_batches or waiting_bytes + size > most_bytes):
                    oldest, block = waiting.popleft()
                    waiting_bytes -= oldest
                    yield block.result()
                waiting.append((size, pool.submit(encode_block, encoder, batch, validation_fraction, begins)))
                waiting_bytes += size
            while waiting:
                yield waiting.popleft()[1].result()
        finally:
            pool.shutdown(cancel_futures=True)
