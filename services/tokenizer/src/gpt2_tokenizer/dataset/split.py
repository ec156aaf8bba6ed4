"""Which documents are for validation: a pure function of a document's text.

So it depends neither on the order of documents nor on what else the corpus holds, and two copies of one text never
stand on both sides.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

TRAIN = "train"
VALIDATION = "validation"
SPLITS = (TRAIN, VALIDATION)
DEFAULT_VALIDATION_FRACTION = 0.05

_HASH_BYTES = 8


def shares(encoded: Iterable[bytes | memoryview]) -> npt.NDArray[np.float64]:
    """A number from 0 to 1 for each text, from its hash alone.

    Args:
        encoded: The UTF-8 of each text.
    """
    digests = b"".join([hashlib.blake2b(text, digest_size=_HASH_BYTES).digest() for text in encoded])
    return np.frombuffer(digests, ">u8").astype(np.float64) / 256.0**_HASH_BYTES


def split_of(text: str, validation_fraction: float) -> str:
    """The split of a document.

    Args:
        text: Its text.
        validation_fraction: Share of texts for validation, over 0 and under 1.
    """
    return VALIDATION if shares([text.encode()])[0] < validation_fraction else TRAIN
