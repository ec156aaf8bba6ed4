"""What an attempt leaves for the next one: which shards of each split are finished, and what they hold."""

import json
from dataclasses import dataclass
from pathlib import Path

from gpt2_common.durable import write_durable
from gpt2_tokenizer.dataset.shards import SplitState, shard_name
from gpt2_tokenizer.dataset.split import SPLITS

_FILE = "encode.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of an encoding after a finished shard."""

    key: str
    """Names the request and its inputs."""
    splits: dict[str, SplitState]

    @property
    def next_document(self) -> int:
        """Number of the first document that any split still needs."""
        return min(state.next_document for state in self.splits.values())

    def to_json(self) -> str:
        """It as it is now, which `write` takes."""
        return json.dumps({"key": self.key, "splits": {name: state.to_json() for name, state in self.splits.items()}})

    @staticmethod
    def write(work: Path, content: str) -> None:
        """Writes one, at once, into a job's folder of unfinished work."""
        write_durable(work / _FILE, content)

    @classmethod
    def load(cls, work: Path, folder: Path, key: str) -> "Checkpoint":
        """Reads what the last attempt left, and removes what it did not finish.

        Args:
            work: The job's folder of unfinished work.
            folder: Folder of the shards.
            key: The request and its inputs; a state of others is not taken up.
        """
        checkpoint = _read(work / _FILE)
        if checkpoint is None or checkpoint.key != key or not checkpoint.is_whole(folder):
            checkpoint = cls(key, {split: SplitState() for split in SPLITS})
        finished = checkpoint.shard_names()
        for path in folder.glob("*.npy*"):
            if path.name not in finished:
                path.unlink()
        for path in folder.glob(".*.part"):
            path.unlink()
        return checkpoint

    def shard_names(self) -> set[str]:
        """File names of the finished shards."""
        return {shard_name(split, index) for split, state in self.splits.items() for index in range(state.shards)}

    def is_whole(self, folder: Path) -> bool:
        """Whether every finished shard is there."""
        return all((folder / name).exists() for name in self.shard_names())


def _read(path: Path) -> Checkpoint | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Checkpoint(content["key"], {split: SplitState(**content["splits"][split]) for split in SPLITS})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
