"""The tokenizers that the service itself has open, for the calls that encode or decode at once."""

import threading
from collections import OrderedDict

from gpt2_common.artifacts import ArtifactStore
from gpt2_common.vocabulary.files import read_vocabulary
from gpt2_tokenizer.encoder import Encoder

_MOST_OPEN = 4


class OpenedTokenizers:
    """Opens tokenizer artifacts and keeps the last few, by the digest of their content. Threads may share it.

    Args:
        artifacts: Where they are.
    """

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._artifacts = artifacts
        self._encoders: OrderedDict[str, Encoder] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, uri: str) -> Encoder:
        """The encoder of a tokenizer artifact. Errors as ArtifactStore.open, naming `tokenizer_uri`."""
        _, manifest = self._artifacts.read_manifest("tokenizer_uri", uri, "tokenizer")
        with self._lock:
            encoder = self._encoders.pop(manifest.digest, None)
            if encoder is None:
                encoder = Encoder(read_vocabulary(self._artifacts.open("tokenizer_uri", uri, "tokenizer", verify=True)))
            self._encoders[manifest.digest] = encoder
            if len(self._encoders) > _MOST_OPEN:
                self._encoders.popitem(last=False)
            return encoder
