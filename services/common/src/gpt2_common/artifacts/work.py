"""Work folders: one for each job, for what a later attempt resumes from.

They lie beside the job's outputs where those are local, to become them by a rename; else in the scratch folder.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt2_common.artifacts.roots import local_path
from gpt2_contracts.artifact import job_folder_name, job_id_of_folder

_WORK = ".work"
_TEMPORARY = "tmp-"
_DISCARDED = ".discarded-"
_DOWNLOADS = "artifacts"


class WorkFolders:
    """The work folders of the jobs that write under one root.

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
        """A job's folder, which need not exist."""
        folder = self._place / job_folder_name(job_id)
        return folder if self._root is None else folder / _WORK

    def require_writable(self) -> None:
        """Writes to a file without a name where the folders are. Raises OSError when that is refused."""
        self._place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._place, buffering=0) as file:
            file.write(b"writable")

    def job_ids(self) -> Sequence[str]:
        """The jobs, of all services with this root, that have a work folder."""
        pattern = "*" if self._root is None else f"*/{_WORK}"
        found = [folder for folder in self._place.glob(pattern) if folder.is_dir() and folder != self.downloads]
        names = [folder.name if self._root is None else folder.parent.name for folder in found]
        return [job_id_of_folder(name) for name in names if not name.startswith(".")]

    def last_modified(self, job_id: str) -> float:
        """Time of the last change in a job's folder, in seconds since 1970; 0 where there is none."""
        return _last_modified(self.of(job_id))

    @contextmanager
    def temporary(self, job_id: str) -> Iterator[Path]:
        """A folder in the job's for the temporary files of one attempt, of all libraries.

        Those that earlier attempts have left are deleted first. Raises OSError when it cannot be created.
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

    def discard(self, job_id: str) -> None:
        """Renames a job's folder, so that it is gone at once, for `delete_discarded` to delete.

        The caller ensures that no attempt starts meanwhile. Raises OSError.
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

    def delete_discarded(self) -> None:
        """Deletes discarded folders, also those of a process that was killed before it deleted them."""
        for folder in self._place.glob(f"{_DISCARDED}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def delete_incomplete_downloads(self, before: float) -> None:
        """Deletes downloads that were interrupted and have not changed since a time."""
        for folder in self.downloads.glob(".*"):
            if _last_modified(folder) < before:
                shutil.rmtree(folder, ignore_errors=True)


def _last_modified(folder: Path) -> float:
    times = [0.0]
    for path in (folder, *folder.rglob("*")):
        with suppress(FileNotFoundError):
            times.append(path.lstat().st_mtime)
    return max(times)
