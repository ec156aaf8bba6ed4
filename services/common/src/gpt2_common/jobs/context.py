"""What a job's function is given: its scratch folder, its artifacts, and the line to its service."""

import logging
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_common.artifacts import Artifact, ArtifactStore, ArtifactWriter, Manifest
from gpt2_common.errors import JobCancelled, JobSuspended
from gpt2_common.escaping import escape_surrogates
from gpt2_common.jobs.definition import service_version
from gpt2_common.revision import checkout_revision
from gpt2_common.settings import Settings

MAX_WARNING_LENGTH = 2000

_log = logging.getLogger(__name__)
_REPORT_SECONDS = 0.25
_RATE_SECONDS = 5.0


class Interruption:
    """Whether the work is to stop. Set by the thread that listens to the service, read by the work."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._suspended = False

    def cancel(self) -> None:
        """Tells the work to stop for good."""
        self._event.set()

    def suspend(self) -> None:
        """Tells the work to stop, to go on in another attempt."""
        self._suspended = True
        self._event.set()

    def check(self) -> None:
        """Raises JobCancelled or JobSuspended when the work is to stop."""
        if self._event.is_set():
            raise JobSuspended("the service is stopping") if self._suspended else JobCancelled("the job was cancelled")


@dataclass(frozen=True, kw_only=True)
class JobIdentity:
    """Which job this is."""

    service: str
    job_id: str
    run_id: str
    request_digest: str
    attempt: int
    """Which attempt this is, from 1."""


class JobContext(Generic[Settings]):
    """The surroundings of one attempt of one job, in its child process.

    Args:
        identity: Which job this is.
        settings: The service's settings.
        send_progress: Takes progress to the service.
        interruption: Tells when to stop.
        send_warning: Takes warnings to the service; None: they are in the log and in `warnings` only.
    """

    def __init__(
        self,
        identity: JobIdentity,
        settings: Settings,
        send_progress: Callable[[job_pb2.Progress], None],
        interruption: Interruption,
        send_warning: Callable[[str], None] | None = None,
    ) -> None:
        self.identity = identity
        self.settings = settings
        self._store = ArtifactStore(settings.artifact_root, settings.roots, settings.scratch_folder)
        self._send_progress = send_progress
        self._send_warning = send_warning
        self._interruption = interruption
        self.warnings: list[str] = []
        """What this attempt has warned of."""
        self._rates: dict[str, _Rate] = {}
        self._last_report = 0.0
        self._phase = ""

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.identity.job_id

    @property
    def work(self) -> Path:
        """Folder for unfinished work, kept from attempt to attempt until the job has succeeded, or is long over."""
        folder = self._store.work.of(self.job_id)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def check_cancelled(self) -> None:
        """Raises JobCancelled or JobSuspended when the job is to stop. Call it often; it costs nothing."""
        self._interruption.check()

    def report(
        self,
        phase: str,
        done: float = 0,
        total: float = 0,
        unit: str = "",
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Says how far the work is. Reports in quick succession are left out, but never the last of a phase.

        Args:
            phase: What is being done, in a few words.
            done: Units done in this phase.
            total: Units in this phase; 0 while unknown.
            unit: What is counted.
            metrics: Figures worth watching.
        """
        now = time.monotonic()
        if phase != self._phase:
            self._phase = phase
        elif now - self._last_report < _REPORT_SECONDS and done != total:
            return
        self._last_report = now
        rate = self._rates.setdefault(phase, _Rate())
        self._send_progress(
            job_pb2.Progress(
                phase=escape_surrogates(phase),
                done=done,
                total=total,
                unit=escape_surrogates(unit),
                rate=rate.add(now, done),
                metrics={escape_surrogates(name): value for name, value in (metrics or {}).items()},
            )
        )

    def warn(self, text: str) -> None:
        """Warns whoever looks at the job of something that does not end it. The same text is one warning.

        Args:
            text: What is wrong, and what to do about it. The log, the job's `warnings`, the command line and the
                dashboard show it. Its first 2000 characters are kept.
        """
        text = escape_surrogates(text)[:MAX_WARNING_LENGTH]
        if text in self.warnings:
            return
        self.warnings.append(text)
        _log.warning("%s", text)
        if self._send_warning is not None:
            self._send_warning(text)

    def require_allowed(self, field: str, uri: str) -> str:
        """Normalises a URI of the request. Raises InvalidRequest, naming the field, when it is outside the roots."""
        return self._store.require_allowed(field, uri)

    def open(self, field: str, uri: str, kind: str, *, verify: bool = False) -> Artifact:
        """Opens an artifact that the request names; see ArtifactStore.open."""
        return self._store.open(field, uri, kind, verify=verify)

    def read_manifest(self, field: str, uri: str, kind: str) -> Manifest:
        """Reads the manifest of an artifact alone; see ArtifactStore.read_manifest."""
        return self._store.read_manifest(field, uri, kind)[1]

    def create(self, name: str, kind: str, parents: Sequence[Artifact] = ()) -> AbstractContextManager[ArtifactWriter]:
        """Gives a writer for one output. Its folder may hold files that an attempt before has left."""
        return self._store.create(self.job_id, name, kind, self._producer(), parents)

    def create_in_place(
        self, name: str, kind: str, parents: Sequence[Artifact] = ()
    ) -> AbstractContextManager[ArtifactWriter]:
        """As `create`, for an output that is to be watched while it grows."""
        return self._store.create_in_place(self.job_id, name, kind, self._producer(), parents)

    def committed(self, name: str, kind: str) -> Artifact | None:
        """An output that an attempt before has committed; None when there is none for this request."""
        uri = self._store.output_uri(self.job_id, name)
        try:
            artifact = self._store.open(name, uri, kind)
        except Exception:  # noqa: BLE001 - whatever is wrong with it, it is made again
            return None
        same = artifact.manifest.producer.get("request_digest") == self.identity.request_digest
        return artifact if same else None

    def remove_work(self) -> None:
        """Deletes the unfinished work, once the outputs are committed."""
        self._store.work.remove(self.job_id)

    def remove_half_written(self) -> None:
        """Deletes files that an attempt has begun and not finished; what it has finished stays for the next one."""
        for part in self._store.work.of(self.job_id).rglob(".*.part"):
            part.unlink(missing_ok=True)

    def _producer(self) -> dict[str, str]:
        return {
            "service": self.identity.service,
            "service_version": service_version(),
            "job_id": self.identity.job_id,
            "run_id": self.identity.run_id,
            "request_digest": self.identity.request_digest,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "git_revision": self.settings.git_revision or checkout_revision(),
            "python": platform.python_version(),
            "platform": platform.platform(),
        }


class _Rate:
    """Units per second over the last seconds."""

    def __init__(self) -> None:
        self._points: list[tuple[float, float]] = []

    def add(self, now: float, done: float) -> float:
        self._points.append((now, done))
        while len(self._points) > 2 and now - self._points[0][0] > _RATE_SECONDS:
            self._points.pop(0)
        elapsed = now - self._points[0][0]
        return (done - self._points[0][1]) / elapsed if elapsed > 0 else 0.0


def output(name: str, artifact: Artifact) -> artifact_pb2.Artifact:
    """One output of a job, as callers see it."""
    return artifact_pb2.Artifact(
        name=name,
        kind=artifact.manifest.kind,
        uri=artifact.uri,
        digest=artifact.digest,
        counts=artifact.manifest.counts,
        properties=artifact.manifest.properties,
    )
