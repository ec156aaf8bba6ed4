"""Deletes unfinished work of jobs that have ended, after its retention time.

A job that FAILED or was CANCELLED can be resumed from what its attempts have finished. So its work is kept until the
job has been over, and its folder unchanged, for that time.
"""

import logging
import threading
import time

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError

from gpt2.jobs.v1 import job_pb2
from gpt2_common.artifacts.work import WorkFolders
from gpt2_common.jobs.rows import JOBS, is_job
from gpt2_common.jobs.store import FINAL, JobStore

_log = logging.getLogger(__name__)
_MAX_PAUSE_SECONDS = 3600.0
_MIN_PAUSE_SECONDS = 2.0
_SWEEPS_PER_RETENTION = 24
_STALE_DOWNLOAD_SECONDS = 86_400.0


class WorkSweeper:
    """Deletes the unfinished work of one service's jobs, at its start and periodically, in a thread.

    Each replica has one: of a remote root, the work is on its own disk.

    Args:
        store: The jobs.
        folders: Where their work is. Folders of other services may be there too, and stay.
        keep_seconds: How long the work of a job that has ended is kept.
    """

    def __init__(self, store: JobStore, folders: WorkFolders, keep_seconds: float) -> None:
        self._store = store
        self._folders = folders
        self._keep_seconds = keep_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="work-sweeper", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, timeout_seconds: float) -> None:
        """Stops the thread. Blocks until then or the timeout; the next start deletes the rest."""
        self._stopping.set()
        self._thread.join(timeout_seconds)

    def sweep(self) -> None:
        """Deletes work whose retention time is over. Raises DBAPIError."""
        for job_id in self._folders.job_ids():
            if self._stopping.is_set():
                return
            # The folder may be of another service, whose job of the same id runs.
            if self._folders.last_modified(job_id) <= time.time() - self._keep_seconds:
                self._discard(job_id)
        self._folders.delete_discarded()
        # A download that is under way changes all the time.
        self._folders.delete_incomplete_downloads(time.time() - max(self._keep_seconds, _STALE_DOWNLOAD_SECONDS))

    def _discard(self, job_id: str) -> None:
        """Discards a job's work, unless it may still be needed.

        The job's row is locked meanwhile: no replica can requeue the job, and start an attempt in the folder, before
        the folder is gone.
        """
        with self._store.engine.begin() as connection:
            query = sql.select(JOBS.c.job).where(*is_job(self._store.service, job_id)).with_for_update()
            row = connection.execute(query).one_or_none()
            if row is None or not self._is_over(job_pb2.Job.FromString(row.job)):
                return
            try:
                self._folders.discard(job_id)
            except OSError as error:
                _log.warning("the unfinished work of job %s cannot be deleted: %s", job_id, error)
                return
        _log.info("the unfinished work of job %s is deleted", job_id, extra={"job_id": job_id})

    def _is_over(self, job: job_pb2.Job) -> bool:
        ended = job.end_time.ToNanoseconds() / 1e9
        return job.state in FINAL and ended <= time.time() - self._keep_seconds

    def _run(self) -> None:
        pause = self._keep_seconds / _SWEEPS_PER_RETENTION
        pause = min(max(pause, _MIN_PAUSE_SECONDS), _MAX_PAUSE_SECONDS)
        while not self._stopping.is_set():
            try:
                self.sweep()
            except DBAPIError as error:
                _log.warning("unfinished work is not deleted now, as the database is unavailable: %s", error.orig)
            except Exception:  # noqa: BLE001 - one unexpected folder must not end the sweeps
                _log.exception("unfinished work is not deleted now")
            self._stopping.wait(pause)
