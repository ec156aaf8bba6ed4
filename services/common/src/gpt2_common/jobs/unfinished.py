"""Unfinished work of jobs that have ended: kept to be continued from, and deleted when it has lain for long enough.

A job that FAILED or was CANCELLED can be continued, and then goes on from what its attempts have finished. So its work
stays for a while, whatever it ended of, and goes when the job has been over, and the folder untouched, for that long.
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
_LONGEST_PAUSE_SECONDS = 3600.0
_SHORTEST_PAUSE_SECONDS = 2.0
_SWEEPS_IN_TIME_KEPT = 24
_SILENT_DOWNLOAD_SECONDS = 86_400.0


class WorkSweeper:
    """Deletes the unfinished work of one service's jobs, at its start and from time to time, in a thread of its own.

    Each replica has one: of a remote root, the work is on its own disk.

    Args:
        store: The jobs.
        folders: Where their work is. Those of other services may be there too, and are left alone.
        keep_seconds: How long the work of a job that has ended is kept.
    """

    def __init__(self, store: JobStore, folders: WorkFolders, keep_seconds: float) -> None:
        self._store = store
        self._folders = folders
        self._keep_seconds = keep_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="work-sweeper", daemon=True)

    def start(self) -> None:
        """Begins to sweep."""
        self._thread.start()

    def stop(self, timeout_seconds: float) -> None:
        """Stops. Blocks until then or the timeout; what is not deleted by then is deleted after the next start."""
        self._stopping.set()
        self._thread.join(timeout_seconds)

    def sweep(self) -> None:
        """Deletes what has lain for long enough. Raises DBAPIError."""
        for job_id in self._folders.job_ids():
            if self._stopping.is_set():
                return
            # The folder may be another service's, whose job of the same id is at work.
            if self._folders.last_change(job_id) <= time.time() - self._keep_seconds:
                self._put_away(job_id)
        self._folders.delete_put_away()
        # One that is under way changes all the time.
        self._folders.delete_broken_downloads(time.time() - max(self._keep_seconds, _SILENT_DOWNLOAD_SECONDS))

    def _put_away(self, job_id: str) -> None:
        """Takes a job's work away, unless it may still be needed.

        The job's row is locked meanwhile: no replica can queue the job again, and so none can begin an attempt in the
        folder, before it is gone.
        """
        with self._store.engine.begin() as connection:
            query = sql.select(JOBS.c.job).where(*is_job(self._store.service, job_id)).with_for_update()
            row = connection.execute(query).one_or_none()
            if row is None or not self._is_over(job_pb2.Job.FromString(row.job)):
                return
            try:
                self._folders.put_away(job_id)
            except OSError as error:
                _log.warning("the unfinished work of job %s cannot be deleted: %s", job_id, error)
                return
        _log.info("the unfinished work of job %s is deleted", job_id, extra={"job_id": job_id})

    def _is_over(self, job: job_pb2.Job) -> bool:
        ended = job.end_time.ToNanoseconds() / 1e9
        return job.state in FINAL and ended <= time.time() - self._keep_seconds

    def _run(self) -> None:
        pause = self._keep_seconds / _SWEEPS_IN_TIME_KEPT
        pause = min(max(pause, _SHORTEST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
        while not self._stopping.is_set():
            try:
                self.sweep()
            except DBAPIError as error:
                _log.warning("unfinished work is not looked through, as the database does not answer: %s", error.orig)
            except Exception:  # noqa: BLE001 - tidying up must not end with one folder that nobody foresaw
                _log.exception("unfinished work is not looked through")
            self._stopping.wait(pause)
