"""The checkpoints of a training under way, in the job's work folder.

Each is written beside its place, with a manifest of checksums, and put there by one rename. A damaged one is found when
it is read, said so in the log, and the one before is taken. The latest few are kept, and the best by validation loss.
"""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from gpt2_common.artifacts import Artifact, ArtifactWriter, Manifest
from gpt2_common.artifacts.manifest import MANIFEST_NAME
from gpt2_common.artifacts.store import check_files
from gpt2_common.errors import DataLoss, FailedPrecondition, ResourceExhausted
from gpt2_common.status import is_disk_full
from gpt2_trainer.formats.checkpoint import ADAPTER, Checkpoint, merged, read_checkpoint, write_checkpoint

_log = logging.getLogger(__name__)
_PREFIX = "step-"


class CheckpointFolder:
    """Checkpoints by step.

    Args:
        folder: Where they are; made when missing.
        keep: Latest ones to keep.
        tokenizer: Folder of the tokenizer's files, which go into each.
    """

    def __init__(self, folder: Path, keep: int, tokenizer: Path | None) -> None:
        self._folder = folder
        self._keep = keep
        self._tokenizer = tokenizer
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*"):
            shutil.rmtree(leftover)

    def path(self, step: int) -> Path:
        """Folder of one checkpoint."""
        return self._folder / f"{_PREFIX}{step:09d}"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, in order."""
        return sorted(int(path.name.removeprefix(_PREFIX)) for path in self._folder.glob(f"{_PREFIX}*"))

    def save(self, checkpoint: Checkpoint) -> None:
        """Saves a checkpoint and deletes those that are not to be kept.

        Raises:
            ResourceExhausted: The disk is full. What was written of it is removed, and those before are untouched.
        """
        state = checkpoint.state
        temporary = self._folder / f".writing-{state.step}"
        try:
            temporary.mkdir()
            write_checkpoint(temporary, checkpoint, self._tokenizer)
            ArtifactWriter(self.path(state.step).as_uri(), "checkpoint", temporary, {}, ()).commit()
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if not is_disk_full(error):
                raise
            before = f"the checkpoint of step {self.steps()[-1]} is whole" if self.steps() else "none was saved before"
            raise ResourceExhausted(
                f"no space left on the disk for the checkpoint of step {state.step} ({self._folder}); {before}: "
                "free some, or choose fewer keep_checkpoints, and retry the job"
            ) from error
        kept = set(self.steps()[-self._keep :]) | {state.best_trained.step if state.best_trained else -1}
        for step in self.steps():
            if step not in kept:
                shutil.rmtree(self.path(step))

    def newest(self) -> Checkpoint | None:
        """Reads the newest checkpoint that is whole, and deletes newer, damaged ones. None when there never was one.

        Raises:
            DataLoss: All are damaged. They are left as they are: a training never silently begins from scratch.
        """
        damaged: list[int] = []
        for step in reversed(self.steps()):
            try:
                self.verify(step)
                checkpoint = read_checkpoint(self.path(step), with_optimizer=True)
                for newer in damaged:
                    shutil.rmtree(self.path(newer))
                return checkpoint
            except (DataLoss, FailedPrecondition) as error:
                _log.warning("the checkpoint of step %d is damaged, going on from the one before: %s", step, error)
                damaged.append(step)
        if damaged:
            raise DataLoss(
                f"every checkpoint of this job is damaged (in {self._folder}): restore one from a backup, "
                "or start the training again under another job id"
            )
        return None

    def verify(self, step: int) -> None:
        """Checks every file's checksum. Raises DataLoss."""
        path = self.path(step)
        try:
            text = (path / MANIFEST_NAME).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataLoss(f"{path} has no readable manifest ({error})") from error
        check_files(Artifact(path.as_uri(), Manifest.from_json(text, path.as_uri()), path), verify=True)

    def publish_unmerged(self, step: int, target: Path) -> None:
        """As `publish`, with additions of low-rank adaptation beside the weights, to continue from."""
        for source in self._files(step):
            _link(source, target / source.relative_to(self.path(step)))

    def publish(self, step: int, target: Path) -> None:
        """Puts one checkpoint's files into another folder, without copying where the file system can link.

        Additions of low-rank adaptation are added to the weights, so that others need not know of them.
        """
        if (self.path(step) / ADAPTER).exists():
            checkpoint = read_checkpoint(self.path(step), with_optimizer=False)
            write_checkpoint(target, merged(checkpoint), self._tokenizer)
            return
        self.publish_unmerged(step, target)

    def _files(self, step: int) -> Iterator[Path]:
        path = self.path(step)
        return (file for file in path.rglob("*") if file.is_file() and file != path / MANIFEST_NAME)


def _link(source: Path, place: Path) -> None:
    """Puts a file at another place, without copying where the file system can link."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    try:
        os.link(source, place)
    except OSError:
        shutil.copy2(source, place)
