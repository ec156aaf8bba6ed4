"""What an attempt leaves for the next one: the shards finished, what they hold, and where reading goes on."""

import json
from dataclasses import dataclass
from pathlib import Path

from gpt2_common.durable import write_durable
from gpt2_exporter.corpus.shards import shard_name
from gpt2_exporter.corpus.tally import Tally

_FILE = "export.json"


@dataclass(slots=True)
class Checkpoint:
    """The state of an export after its last finished shard."""

    request_digest: str
    fingerprint: str
    """Names the data that is read."""
    shards: int
    """Shards finished."""
    tally: Tally
    """What they hold, and what was left out until then."""
    after: str | None
    """The last document that they hold."""

    def to_json(self) -> str:
        """The state as text."""
        content = {
            "request_digest": self.request_digest,
            "fingerprint": self.fingerprint,
            "shards": self.shards,
            "tally": self.tally.to_json(),
            "after": self.after,
        }
        return json.dumps(content)

    @staticmethod
    def save(work: Path, content: str) -> None:
        """Writes what `to_json` gave, at once, into a job's folder of unfinished work."""
        write_durable(work / _FILE, content)

    @staticmethod
    def remove(work: Path) -> None:
        """Removes what `save` wrote: the next attempt begins anew."""
        (work / _FILE).unlink(missing_ok=True)

    @classmethod
    def load(cls, work: Path, corpus: Path, request_digest: str, fingerprint: str) -> "Checkpoint":
        """Reads what the last attempt left, and removes what it did not finish.

        Args:
            work: The job's folder of unfinished work.
            corpus: Folder of the shards.
            request_digest: The request; a state of another one is not taken up.
            fingerprint: The data; a state of other data is not taken up.
        """
        checkpoint = _read(work / _FILE)
        asked = (request_digest, fingerprint)
        if checkpoint is None or (checkpoint.request_digest, checkpoint.fingerprint) != asked:
            checkpoint = cls(request_digest, fingerprint, 0, Tally(), None)
        finished = {shard_name(index) for index in range(checkpoint.shards)}
        for path in corpus.iterdir():
            if path.name not in finished:
                path.unlink()
        if any(not (corpus / name).exists() for name in finished):
            return cls(request_digest, fingerprint, 0, Tally(), None)
        return checkpoint


def _read(path: Path) -> Checkpoint | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        tally = Tally.from_json(content["tally"])
        return Checkpoint(content["request_digest"], content["fingerprint"], content["shards"], tally, content["after"])
    except (FileNotFoundError, ValueError, KeyError):
        return None
