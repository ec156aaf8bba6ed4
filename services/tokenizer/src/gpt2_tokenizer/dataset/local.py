"""Encodes a corpus on this machine: the calling thread reads, others encode, and blocks stay in order."""

import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from gpt2_common.artifacts import Artifact
from gpt2_tokenizer.corpus.reading import read_batches
from gpt2_tokenizer.dataset.blocks import Block, encode_block
from gpt2_tokenizer.encoding.encoder import Encoder

# Limits on what waits, high enough that no worker is idle while the corpus is read: bytes of text, as one document may
# be long, and batches, as documents may be short.
_MAX_WAITING_BYTES_PER_WORKER = 16 << 20
_MAX_WAITING_BATCHES_PER_WORKER = 8


def limit_library_threads(threads: int, callers: int = 1) -> None:
    """Sets the number of threads of the encoding libraries, which read it once, when they first encode.

    Args:
        threads: Threads in all.
        callers: Threads that call them at once. fastokens then works on the calling thread, which has its cache: to
            divide a call among threads takes a quarter more CPU time (measured on two cores).
    """
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("FASTOKENS_BPE_THREADS", str(max(1, threads // callers)))


def local_blocks(
    encoder: Encoder, corpus: Artifact, validation_fraction: float, begins: Mapping[str, int], workers: int
) -> Iterator[dict[str, Block]]:
    """Yields the encoded documents of a corpus in its order, for any number of workers.

    Args:
        encoder: The encoder of the vocabulary.
        corpus: The corpus.
        validation_fraction: Fraction of texts for validation.
        begins: Number of the first document that each split still needs.
        workers: Threads that encode.
    """
    begins = dict(begins)  # The caller may change its own meanwhile.
    waiting: deque[tuple[int, Future[dict[str, Block]]]] = deque()
    waiting_bytes = 0
    max_bytes, max_batches = _MAX_WAITING_BYTES_PER_WORKER * workers, _MAX_WAITING_BATCHES_PER_WORKER * workers
    with ThreadPoolExecutor(workers, "encode") as pool:
        try:
            for batch in read_batches(corpus, min(begins.values())):
                size = batch.size
                while waiting and (len(waiting) > max_batches or waiting_bytes + size > max_bytes):
                    oldest, block = waiting.popleft()
                    waiting_bytes -= oldest
                    yield block.result()
                waiting.append((size, pool.submit(encode_block, encoder, batch, validation_fraction, begins)))
                waiting_bytes += size
            while waiting:
                yield waiting.popleft()[1].result()
        finally:
            pool.shutdown(cancel_futures=True)
