"""The resume point of an encoding, and the background thread that saves it after the shards that it lists."""

import json
from dataclasses import dataclass
from pathlib import Path

from gpt2_common.artifacts import ArtifactWriter
from gpt2_common.background import BackgroundTasks
from gpt2_common.durable import replace_durable, write_durable
from gpt2_contracts.dataset import SPLITS, shard_name
from gpt2_tokenizer.dataset.shards import SplitState

_FILE = "encode.json"
# A slow disk holds the encoding up before a crash could lose more work than the shards of so many tasks.
_MAX_WAITING = 4


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """The state of an encoding after a finished shard."""

    key: str
    """Identifies the request and its inputs."""
    splits: dict[str, SplitState]

    @property
    def next_document(self) -> int:
        """Number of the first document that any split still needs."""
        return min(state.next_document for state in self.splits.values())

    def to_json(self) -> str:
        """The content of the file that `load` reads."""
        return json.dumps({"key": self.key, "splits": {name: state.to_json() for name, state in self.splits.items()}})

    @classmethod
    def load(cls, work: Path, folder: Path, key: str) -> "ResumePoint":
        """Reads the resume point of the previous attempt, and removes the shards that it does not list.

        Args:
            work: The job's folder of unfinished work.
            folder: Folder of the shards.
            key: The request and its inputs; a resume point of others is ignored.
        """
        resume_point = _read(work / _FILE)
        if resume_point is None or resume_point.key != key or not resume_point.is_whole(folder):
            resume_point = cls(key, {split: SplitState() for split in SPLITS})
        finished = resume_point.shard_names()
        for path in folder.glob("*.npy*"):
            if path.name not in finished:
                path.unlink()
        for path in folder.glob(".*.part"):
            path.unlink()
        return resume_point

    def shard_names(self) -> set[str]:
        """File names of the finished shards."""
        return {shard_name(split, index) for split, state in self.splits.items() for index in range(state.shards)}

    def is_whole(self, folder: Path) -> bool:
        """Whether every finished shard exists."""
        return all((folder / name).exists() for name in self.shard_names())


class ShardFinisher(BackgroundTasks):
    """Finishes shards and saves resume points, in the order of the calls, while encoding continues.

    A shard is whole, on the disk and hashed before the next task runs, so a resume point never lists one that is not.

    Args:
        writer: The artifact of the shards.
        work: The job's folder of unfinished work.
    """

    def __init__(self, writer: ArtifactWriter, work: Path) -> None:
        super().__init__("shard-finisher", _MAX_WAITING)
        self._writer = writer
        self._work = work

    def finish(self, part: Path, path: Path) -> None:
        """Renames a completely written file to its place. Raises the error of an earlier task."""
        self.submit(lambda: self._finish(part, path))

    def save(self, resume_point: ResumePoint) -> None:
        """Saves a resume point as it is now. Raises the error of an earlier task."""
        content = resume_point.to_json()
        self.submit(lambda: write_durable(self._work / _FILE, content))

    def _finish(self, part: Path, path: Path) -> None:
        replace_durable(part, path)
        # While the content is still in the page cache.
        self._writer.hash_file(path)


def _read(path: Path) -> ResumePoint | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return ResumePoint(content["key"], {split: SplitState(**content["splits"][split]) for split in SPLITS})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
