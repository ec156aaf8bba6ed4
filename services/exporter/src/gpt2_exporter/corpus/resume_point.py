"""The resume point of an export: the finished shards, their statistics, and the token to resume reading with."""

import json
from dataclasses import dataclass
from pathlib import Path

from gpt2_common.durable import write_durable
from gpt2_contracts.corpus import shard_name
from gpt2_exporter.corpus.statistics import CorpusStatistics

_FILE = "export.json"


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """The state of an export after its last finished shard."""

    request_digest: str
    fingerprint: str
    """Fingerprint of the data that is read."""
    shards: int
    """Finished shards."""
    statistics: CorpusStatistics
    """Counts of the documents in them, and of those left out before their end."""
    resume_after: str | None
    """Token to resume reading with; None to begin with the first document."""

    def to_json(self) -> str:
        """The content of the file that `load` reads."""
        content = {
            "request_digest": self.request_digest,
            "fingerprint": self.fingerprint,
            "shards": self.shards,
            "tally": self.statistics.to_json(),
            "after": self.resume_after,
        }
        return json.dumps(content)

    @staticmethod
    def save(work: Path, content: str) -> None:
        """Writes the result of `to_json` atomically into a job's folder of unfinished work."""
        write_durable(work / _FILE, content)

    @staticmethod
    def remove(work: Path) -> None:
        """Removes the resume point: the next attempt starts from the beginning."""
        (work / _FILE).unlink(missing_ok=True)

    @classmethod
    def load(cls, work: Path, corpus: Path, request_digest: str, fingerprint: str) -> "ResumePoint":
        """Reads the resume point of the previous attempt, and removes the shards that it does not list.

        Args:
            work: The job's folder of unfinished work.
            corpus: Folder of the shards.
            request_digest: The request; a resume point of another one is ignored.
            fingerprint: The data; a resume point of other data is ignored.
        """
        resume_point = _read(work / _FILE)
        expected = (request_digest, fingerprint)
        if resume_point is None or (resume_point.request_digest, resume_point.fingerprint) != expected:
            resume_point = cls(request_digest, fingerprint, 0, CorpusStatistics(), None)
        finished = {shard_name(index) for index in range(resume_point.shards)}
        for path in corpus.iterdir():
            if path.name not in finished:
                path.unlink()
        if any(not (corpus / name).exists() for name in finished):
            return cls(request_digest, fingerprint, 0, CorpusStatistics(), None)
        return resume_point


def _read(path: Path) -> ResumePoint | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return ResumePoint(
            content["request_digest"],
            content["fingerprint"],
            content["shards"],
            CorpusStatistics.from_json(content["tally"]),
            content["after"],
        )
    except (FileNotFoundError, ValueError, KeyError):
        return None
