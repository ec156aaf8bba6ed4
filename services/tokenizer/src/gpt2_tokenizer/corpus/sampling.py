"""Chooses the documents of a sample by the hash of their text, so that order and files of the corpus change nothing."""

from collections.abc import Callable

import numpy as np

from gpt2_common.artifacts import Artifact
from gpt2_tokenizer.corpus.reading import read_batches, text_bytes
from gpt2_tokenizer.dataset.split import shares

DEFAULT_SAMPLE_BYTES = 1 << 30
"""Text that training learns from where nothing else is asked for: its memory grows with the different words in it."""

_BINS = 1 << 16


def least_share_of(corpus: Artifact, sample_bytes: int, check_cancelled: Callable[[], None]) -> float:
    """The least share that a document of the sample has; the sample is those with at least that.

    The highest hashes are taken, as the lowest are those of validation. One pass, and none where the corpus is no
    larger than the sample; memory does not grow.

    Args:
        corpus: The corpus.
        sample_bytes: Bytes of UTF-8 wanted. What comes out is off by what one of 65,536 bins of hashes holds.
        check_cancelled: Raises when the job is to stop.
    """
    if text_bytes(corpus) <= sample_bytes:
        return 0.0
    sizes = np.zeros(_BINS)
    for batch in read_batches(corpus):
        check_cancelled()
        encoded = list(batch.encoded())
        bins = np.minimum((shares(encoded) * _BINS).astype(np.int64), _BINS - 1)
        np.add.at(sizes, bins, [len(text) for text in encoded])
    from_top = np.cumsum(sizes[::-1])
    if from_top[-1] <= sample_bytes:
        return 0.0
    taken = int(np.searchsorted(from_top, sample_bytes)) + 1
    return max(0, _BINS - taken) / _BINS
