"""Checkpoints of a running training, in the job's work folder: the latest few, and the best by validation loss.

Each is written to a temporary folder with a manifest of checksums, and renamed. A damaged one is found when it is read,
logged, and the one before is used.
"""

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from gpt2_common.artifacts import Artifact, ArtifactWriter, Manifest
from gpt2_common.artifacts.manifest import MANIFEST_NAME
from gpt2_common.artifacts.store import check_files
from gpt2_common.errors import DataLoss, FailedPrecondition, JobSuperseded, ResourceExhausted
from gpt2_common.status import is_disk_full
from gpt2_contracts.artifact import CHECKPOINT
from gpt2_trainer.formats.checkpoint import (
    ADAPTER,
    Checkpoint,
    merged,
    read_checkpoint,
    with_averages,
    write_checkpoint,
)

_log = logging.getLogger(__name__)
_PREFIX = "step-"


class CheckpointManager:
    """Checkpoints by step.

    Args:
        folder: Their folder; created when missing.
        keep: Number of latest checkpoints to keep.
        tokenizer: Folder of the tokenizer's files, which go into each.
        check: Called directly before anything changes that another attempt would see; raises JobSuperseded.
        is_reader: Whether another process, the first of several nodes, writes them.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        tokenizer: Path | None,
        check: Callable[[], None] = lambda: None,
        *,
        is_reader: bool = False,
    ) -> None:
        self._folder = folder
        self._keep = keep
        self._tokenizer = tokenizer
        self._check = check
        if is_reader:
            return
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
        """Saves a checkpoint and deletes those that are not kept.

        Raises:
            ResourceExhausted: The disk is full. Its files are removed, and earlier checkpoints are untouched.
        """
        state = checkpoint.state
        temporary = self._folder / f".writing-{state.step}-{uuid.uuid4().hex}"
        try:
            self._check()
            temporary.mkdir()
            write_checkpoint(temporary, checkpoint, self._tokenizer)
            ArtifactWriter(self.path(state.step).as_uri(), CHECKPOINT, temporary, {}, (), self._check).commit()
        except JobSuperseded:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            # A later attempt has deleted it.
            self._check()
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
                self._check()
                shutil.rmtree(self.path(step))

    def newest(self) -> Checkpoint | None:
        """Reads the newest intact checkpoint, and deletes newer, damaged ones. None when there is none.

        Raises:
            DataLoss: All are damaged. They stay: a training never silently starts from scratch.
        """
        damaged: list[int] = []
        for step in reversed(self.steps()):
            try:
                checkpoint = self.read(step)
                for newer in damaged:
                    self._check()
                    shutil.rmtree(self.path(newer))
                return checkpoint
            except (DataLoss, FailedPrecondition) as error:
                _log.warning("the checkpoint of step %d is damaged, resuming from the one before: %s", step, error)
                damaged.append(step)
        if damaged:
            raise DataLoss(
                f"every checkpoint of this job is damaged (in {self._folder}): restore one from a backup, "
                "or start the training again under another job id"
            )
        return None

    def read(self, step: int) -> Checkpoint:
        """Reads the checkpoint of a step.

        Raises:
            DataLoss: It is damaged.
            FailedPrecondition: It is not there.
        """
        if not self.path(step).is_dir():
            raise FailedPrecondition(
                f"GPT2_ARTIFACT_ROOT: the checkpoint of step {step}, which the training resumes from, is not in "
                f"{self._folder}; give all nodes the same shared folder, with an object store as GPT2_SCRATCH_FOLDER"
            )
        self.verify(step)
        return read_checkpoint(self.path(step), with_optimizer=True)

    def verify(self, step: int) -> None:
        """Checks every file's checksum. Raises DataLoss."""
        path = self.path(step)
        try:
            text = (path / MANIFEST_NAME).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataLoss(f"{path} has no readable manifest ({error})") from error
        check_files(Artifact(path.as_uri(), Manifest.from_json(text, path.as_uri()), path), verify=True)

    def publish_resumable(self, step: int, target: Path) -> None:
        """As `publish`, with the adapters of LoRA beside the weights, to continue from."""
        for source in self._files(step):
            _link(source, target / source.relative_to(self.path(step)))

    def publish(self, step: int, target: Path, *, is_averaged: bool = False) -> None:
        """Puts one checkpoint's files into another folder, by hard links where the file system has them.

        Adapters of LoRA are merged into the weights.

        Args:
            step: Step of the checkpoint.
            target: Where to put its files.
            is_averaged: Whether its training keeps averages, which are published in place of the weights.
        """
        if is_averaged or (self.path(step) / ADAPTER).exists():
            checkpoint = read_checkpoint(self.path(step), with_optimizer=is_averaged)
            write_checkpoint(target, merged(with_averages(checkpoint)), self._tokenizer)
            return
        self.publish_resumable(step, target)

    def _files(self, step: int) -> Iterator[Path]:
        path = self.path(step)
        return (file for file in path.rglob("*") if file.is_file() and file != path / MANIFEST_NAME)


def _link(source: Path, place: Path) -> None:
    """Hard-links a file, or copies it where the file system has no links."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    try:
        os.link(source, place)
    except OSError:
        shutil.copy2(source, place)
