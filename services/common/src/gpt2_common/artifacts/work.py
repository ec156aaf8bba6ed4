"""Folders of unfinished work: one for each job, for what a later attempt can go on from.

They lie beside the job's outputs where those are local, to become them by a rename; else in the scratch folder.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt2_common.artifacts.roots import local_path

_WORK = ".work"
_TEMPORARY = "tmp-"
_DISCARDED = ".discarded-"
_DOWNLOADS = "artifacts"


def job_folder_name(job_id: str) -> str:
    """Name of the folder that is a job's own."""
    # `~` cannot stand in a job id, so that no two ids share a folder and none lies inside another's.
    return job_id.replace("/", "~")


class WorkFolders:
    """The unfinished work of the jobs that write under one root.

    Args:
        root: URI that artifacts are written under.
        scratch: Local folder for work in progress and for copies, where the root is remote.
    """

    def __init__(self, root: str, scratch: Path) -> None:
        self._root = local_path(root)
        self._scratch = scratch
        self._place = scratch if self._root is None else self._root

    @property
    def downloads(self) -> Path:
        """Folder for copies of artifacts of remote roots."""
        return self._scratch / _DOWNLOADS

    def of(self, job_id: str) -> Path:
        """A job's folder. It need not be there."""
        folder = self._place / job_folder_name(job_id)
        return folder if self._root is None else folder / _WORK

    def job_ids(self) -> Sequence[str]:
        """The jobs, of any service that has this root, whose folders are there."""
        pattern = "*" if self._root is None else f"*/{_WORK}"
        found = [folder for folder in self._place.glob(pattern) if folder.is_dir() and folder != self.downloads]
        names = [folder.name if self._root is None else folder.parent.name for folder in found]
        return [name.replace("~", "/") for name in names if not name.startswith(".")]

    def last_change(self, job_id: str) -> float:
        """When something in a job's folder last changed, in seconds since 1970; 0 where it is not there."""
        return _last_change(self.of(job_id))

    @contextmanager
    def temporary(self, job_id: str) -> Iterator[Path]:
        """A folder in a job's own for the temporary files of one attempt, whatever library makes them.

        What attempts before have left of theirs goes first. Raises OSError when it cannot be made.
        """
        work = self.of(job_id)
        work.mkdir(parents=True, exist_ok=True)
        for left in work.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=work))
        try:
            yield folder
        finally:
            # Only its own: by now another replica may have begun an attempt here.
            shutil.rmtree(folder, ignore_errors=True)

    def remove(self, job_id: str) -> None:
        """Deletes a job's folder, by the attempt that works in it."""
        shutil.rmtree(self.of(job_id), ignore_errors=True)

    def put_away(self, job_id: str) -> None:
        """Takes a job's folder away at once, by a rename, for `delete_put_away` to delete.

        Whoever calls it sees to it that no attempt begins meanwhile. Raises OSError.
        """
        work = self.of(job_id)
        aside = Path(tempfile.mkdtemp(prefix=_DISCARDED, dir=self._place))
        try:
            work.rename(aside / _WORK)
        except OSError:
            aside.rmdir()
            raise
        if self._root is not None:
            # Where the job has made no output, nothing else is in it.
            with suppress(OSError):
                work.parent.rmdir()

    def delete_put_away(self) -> None:
        """Deletes what has been put away, now or by a process that died before it came to this."""
        for folder in self._place.glob(f"{_DISCARDED}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def delete_broken_downloads(self, before: float) -> None:
        """Deletes what downloads have left that ended in the middle and in which nothing changed since a time."""
        for folder in self.downloads.glob(".*"):
            if _last_change(folder) < before:
                shutil.rmtree(folder, ignore_errors=True)


def _last_change(folder: Path) -> float:
    times = [0.0]
    for path in (folder, *folder.rglob("*")):
        with suppress(FileNotFoundError):
            times.append(path.lstat().st_mtime)
    return max(times)
