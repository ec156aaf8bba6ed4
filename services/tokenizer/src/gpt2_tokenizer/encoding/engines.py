"""The libraries that encode text, and the choice among them.

`tokenizers` is the reference; fastokens is tens of times faster. It is chosen where it is installed, accepts the
vocabulary, and agrees with the reference on adversarial texts. Neither knows the end token, so its name in a text is
plain text: the pre-tokenisation divides it, and no merge crosses the parts.
"""

import importlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from gpt2_common.vocabulary.files import text_tokenizer, text_tokenizer_json
from gpt2_common.vocabulary.vocabulary import Vocabulary
from gpt2_contracts.tokenizer import END_TOKEN

_log = logging.getLogger(__name__)

# The time in which fastokens opens a vocabulary grows with the square of its longest token.
_MAX_TOKEN_CHARACTERS = 4096

Tokens = npt.NDArray[np.uint32]
Offsets = npt.NDArray[np.int64]

# What libraries are known to treat differently: Unicode versions, white space, contractions, the end token's name.
_ADVERSARIAL = (
    f"{END_TOKEN} a{END_TOKEN}b <|endof{END_TOKEN}text|>{END_TOKEN}{END_TOKEN}",
    "it's IT'S we'll we'LL '' 'sx 's's x'd ' s",
    "a\u0085b\u00a0c\u1680d\u180ee\u2003f\u2028g\u2029h\u200bi\u202fj\u205fk\u3000l\ufeffm\x1cn\x1do\x1ep\x1fq\x0br\x0cs",
    "  two   three\n\n four \r\n\r\nfive\t\tsix   \n \n  ",
    "१२३ ٤٥٦ Ⅷ ½ ² 1\u03010 ५a 〇 𝟘𝟙 \u0661x",
    "e\u0301 a\u0300\u0301\u0302 \u0301x नमस्ते กำลัง שלום عليكم \u202eRTL\u202c",
    "👩‍👩‍👧‍👦🏳️‍🌈👍🏽 中文分词 한국어 ひらがな カタカナ",
    # Letters and digits of Unicode 15.1 to 17, which older tables classify otherwise: it shows in whether `'ll` after
    # them is a contraction.
    "a\u088f'll \ua7ce'll \ua7d2'll \ua7da'll \u0c5c'll \U00010940'll \U00011de1'll \U00016ea0'll",
    "9\U00010d40'll \U00010d50's \U0002ebf0's \U000323b0's \U0001e6c0't \U0002b73a't \U000187f8't",
    "\0\0 \0 a\0b \x7f\x80\xff",
)


class Engine(Protocol):
    """A library with one vocabulary. Threads may share it."""

    name: str

    def encode(self, texts: Sequence[str], *, end_tokens: bool = False) -> tuple[Tokens, Offsets]:
        """Returns the token ids of all texts, one after another.

        Args:
            texts: The texts.
            end_tokens: Whether to add an end token after each text, as one of its ids.

        Returns:
            The ids, [tokens] uint32, and offsets into them, [texts + 1] int64: text i has those from offset i to offset
            i + 1.

        Raises:
            UnicodeEncodeError: A text has a lone surrogate.
        """


class ReferenceEngine:
    """`tokenizers`: slow, and accepts every vocabulary.

    Args:
        tokenizer: A tokenizer of `text_tokenizer`, without the end token.
    """

    name = "tokenizers"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str], *, end_tokens: bool = False) -> tuple[Tokens, Offsets]:
        """See Engine."""
        for text in texts:
            text.encode()  # The library would raise a TypeError that does not say where.
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=end_tokens)
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(item) for item in encoded], out=offsets[1:])
        ids = np.empty(offsets[-1], np.uint32)
        for item, begin, end in zip(encoded, offsets[:-1], offsets[1:], strict=True):
            ids[begin:end] = item.ids
        return ids, offsets


class FastEngine:
    """fastokens, which returns the ids of a batch as bytes.

    Args:
        tokenizer: A `fastokens.Tokenizer` without added tokens, with the template of `text_tokenizer_json`.
    """

    name = "fastokens"

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str], *, end_tokens: bool = False) -> tuple[Tokens, Offsets]:
        """See Engine."""
        batch = texts if isinstance(texts, list) else list(texts)
        ids, offsets = self._tokenizer.encode_batch_flat(batch, add_special_tokens=end_tokens)
        return np.frombuffer(ids, np.uint32), np.frombuffer(offsets, np.int64)


def choose_engine(vocabulary: Vocabulary, *, fast: bool = True) -> Engine:
    """Returns the fastest engine that is exact for a vocabulary.

    Args:
        vocabulary: The vocabulary.
        fast: Whether fastokens may be chosen.
    """
    # Only the reference splits added tokens out of texts.
    if not fast or vocabulary.added_tokens or max(map(len, vocabulary.tokens)) > _MAX_TOKEN_CHARACTERS:
        return ReferenceEngine(text_tokenizer(vocabulary))
    try:
        library = importlib.import_module("fastokens")
    except ImportError as error:
        return _slower(ReferenceEngine(text_tokenizer(vocabulary)), f"{type(error).__name__}: {error}")
    # Made before the thread starts: the thread then enters the library at once, which takes longest and releases
    # Python's lock, so that the reference is opened at the same time.
    description = text_tokenizer_json(vocabulary)
    with ThreadPoolExecutor(1, "open") as pool:
        opening = pool.submit(library.Tokenizer.from_json_str, description)
        reference = ReferenceEngine(text_tokenizer(vocabulary))
        probes = _probes(vocabulary)
    try:
        engine = FastEngine(opening.result())
        difference = find_difference(engine, reference, probes)
    except (ValueError, RuntimeError) as error:
        difference = f"{type(error).__name__}: {error}"
    return _slower(reference, difference) if difference else engine


def _slower(reference: ReferenceEngine, difference: str) -> ReferenceEngine:
    _log.warning("fastokens is not used (%s): the slower tokenizers library encodes instead", difference)
    return reference


def find_difference(engine: Engine, reference: Engine, texts: Sequence[str]) -> str:
    """Returns which text two engines encode differently, for messages; empty when there is none."""
    ids, offsets = engine.encode(texts, end_tokens=True)
    expected, expected_offsets = reference.encode(texts, end_tokens=True)
    for index, text in enumerate(texts):
        ours = ids[offsets[index] : offsets[index + 1]]
        if not np.array_equal(ours, expected[expected_offsets[index] : expected_offsets[index + 1]]):
            return f"it encodes {text[:40]!r} otherwise"
    return ""


def _probes(vocabulary: Vocabulary) -> list[str]:
    """Returns adversarial texts; more of them where the vocabulary is not numbered as training numbers it."""
    made = [left + right for left, right in vocabulary.merges]
    end = vocabulary.end_token
    probes = [*_ADVERSARIAL, f"{end} a{end}b {end[:2]}{end}{end[2:]} {end}{end}"]
    if list(vocabulary.tokens[256 : 256 + len(made)]) != made:
        # Ids in another order than merges, or tokens without a merge: libraries may look these up as a whole.
        tokens = [token.decode("utf-8", errors="replace") for token in vocabulary.bytes_of_ids()]
        probes += [*tokens, *(f" {token}s" for token in tokens)]
    return probes
