"""Which documents are for validation: a pure function of a document's text.

So it depends neither on the order of documents nor on what else the corpus holds, and two copies of one text never
stand on both sides. The hash is XXH3 with 64 bits: a slower one is noticed beside the encoder.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import xxhash

TRAIN = "train"
VALIDATION = "validation"
SPLITS = (TRAIN, VALIDATION)
DEFAULT_VALIDATION_FRACTION = 0.05

SPLIT_HASH = "xxh3_64"
"""Name of the hash: a dataset says it, as the documents of its splits follow from it."""

_HASH_VALUES = 2.0**64


def shares(encoded: Iterable[bytes | memoryview]) -> npt.NDArray[np.float64]:
    """A number from 0 to 1 for each text, from its hash alone.

    Args:
        encoded: The UTF-8 of each text.
    """
    hashes = np.array([xxhash.xxh3_64_intdigest(text) for text in encoded], np.uint64)
    return hashes.astype(np.float64) / _HASH_VALUES


def split_of(text: str, validation_fraction: float) -> str:
    """The split of a document.

    Args:
        text: Its text.
        validation_fraction: Share of texts for validation, over 0 and under 1.
    """
    return VALIDATION if shares([text.encode()])[0] < validation_fraction else TRAIN
