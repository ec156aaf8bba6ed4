"""Which documents are for validation: a pure function of a document's text.

So it depends neither on the order of documents nor on what else the corpus holds, and two copies of one text never
stand on both sides.
"""

import hashlib

TRAIN = "train"
VALIDATION = "validation"
SPLITS = (TRAIN, VALIDATION)
DEFAULT_VALIDATION_FRACTION = 0.05

_HASH_BYTES = 8


def split_of(text: str, validation_fraction: float) -> str:
    """The split of a document.

    Args:
        text: Its text.
        validation_fraction: Share of texts for validation, over 0 and under 1.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=_HASH_BYTES).digest()
    share = int.from_bytes(digest, "big") / 256**_HASH_BYTES
    return VALIDATION if share < validation_fraction else TRAIN
