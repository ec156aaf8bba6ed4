"""Tokens to text and back: prompts in, whole characters out, stop sequences found before they are shown."""

import codecs
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from gpt2_common.errors import DataLoss
from gpt2_common.vocabulary.byte_symbols import symbol_bytes
from gpt2_contracts.tokenizer import TOKENIZER_FILE


class TextCodec:
    """A tokenizer, from its files.

    Args:
        folder: Folder with `tokenizer.json`.
        end_token_id: The token between documents.

    Raises:
        DataLoss: The file is missing or no tokenizer.
    """

    def __init__(self, folder: Path, end_token_id: int) -> None:
        path = folder / TOKENIZER_FILE
        try:
            self._tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:
            raise DataLoss(f"{path} cannot be read as a tokenizer ({error}): make the artifact again") from error
        self._end_token_id = end_token_id
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocabulary_size = max(vocabulary.values(), default=-1) + 1
        self._bytes = {token_id: _token_bytes(token) for token, token_id in vocabulary.items()}
        # Added tokens are text themselves, whichever characters they are made of.
        added = self._tokenizer.get_added_tokens_decoder()
        self._bytes |= {token_id: token.content.encode() for token_id, token in added.items()}

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids of a prompt; the end token, after which a document begins, for an empty one."""
        token_ids: list[int] = self._tokenizer.encode(prompt, add_special_tokens=False).ids if prompt else []
        return token_ids or [self._end_token_id]

    def token_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes of one token, which may be part of a character."""
        return self._bytes.get(token_id, b"")

    def decode(self, token_ids: Iterable[int]) -> str:
        """Text up to the end token or the last token; bytes of an unfinished character at the end are left out."""
        stream = TextStream(self, ())
        pieces = []
        for token_id in token_ids:
            if token_id == self._end_token_id:
                break
            pieces.append(stream.add(token_id))
        return "".join(pieces) + stream.rest()


class TextStream:
    """Streamed text of one sample.

    Args:
        codec: The tokenizer.
        stops: Texts at which the sample stops.
    """

    def __init__(self, codec: TextCodec, stops: Sequence[str]) -> None:
        self._codec = codec
        self._stops = tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def add(self, token_id: int) -> str:
        """Adds a token. Returns the text that can be shown: whole characters that begin no stop sequence."""
        self._held += self._decoder.decode(self._codec.token_bytes(token_id))
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def rest(self) -> str:
        """The text held back, after the last token."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of a text that is a prefix of a stop sequence."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if stop.startswith(text[-length:])), 0)


def _token_bytes(token: str) -> bytes:
    try:
        return symbol_bytes(token)
    except KeyError:
        # A special token, which is text itself.
        return token.encode()
