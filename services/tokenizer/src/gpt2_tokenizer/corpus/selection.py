"""Selects documents by a hash of their text: those for validation, and a sample to train a vocabulary on.

So neither the order of documents nor the rest of the corpus affects the selection, and two copies of one text are
always in the same split.
"""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import xxhash

from gpt2_common.artifacts import Artifact
from gpt2_tokenizer.corpus.reading import read_batches, text_bytes

DEFAULT_VALIDATION_FRACTION = 0.05
DEFAULT_SAMPLE_BYTES = 1 << 30
"""Bytes of text that a vocabulary is trained on by default: memory grows with the distinct words in them."""

SPLIT_HASH = "xxh3_64"
"""Name of the hash; datasets record it, as their splits follow from it."""

# XXH3 with 64 bits: a slower hash shows in the time of an encoding.
_HASH_VALUES = 2.0**64
_BINS = 1 << 16


def hash_fractions(encoded: Iterable[bytes | memoryview]) -> npt.NDArray[np.float64]:
    """Returns the hash of each text as a fraction of the greatest hash.

    Args:
        encoded: UTF-8 of each text.

    Returns:
        [texts], float64 from 0 to 1, evenly distributed over different texts.
    """
    hashes = np.array([xxhash.xxh3_64_intdigest(text) for text in encoded], np.uint64)
    return hashes.astype(np.float64) / _HASH_VALUES


def min_sample_fraction(corpus: Artifact, sample_bytes: int, check_cancelled: Callable[[], None]) -> float:
    """Returns the hash fraction from which on documents belong to a sample of a corpus.

    The sample has the highest hashes, as validation has the lowest. Takes one pass in flat memory, and none where the
    corpus is no larger than the sample.

    Args:
        corpus: The corpus.
        sample_bytes: Bytes of UTF-8 wanted; the sample exceeds them by at most one of 65,536 bins of hashes.
        check_cancelled: Raises when the job has to stop.
    """
    if text_bytes(corpus) <= sample_bytes:
        return 0.0
    bin_bytes = np.zeros(_BINS)
    for batch in read_batches(corpus):
        check_cancelled()
        encoded = list(batch.encoded())
        bins = np.minimum((hash_fractions(encoded) * _BINS).astype(np.int64), _BINS - 1)
        np.add.at(bin_bytes, bins, [len(text) for text in encoded])
    from_top = np.cumsum(bin_bytes[::-1])
    if from_top[-1] <= sample_bytes:
        return 0.0
    taken = int(np.searchsorted(from_top, sample_bytes)) + 1
    return max(0, _BINS - taken) / _BINS
