"""What a job's function receives: its work folder, its artifacts, and reports to its service."""

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
from gpt2_common.artifacts.claim import Claim
from gpt2_common.errors import JobCancelled, JobSuperseded, JobSuspended
from gpt2_common.escaping import escape_surrogates
from gpt2_common.jobs.definition import service_version
from gpt2_common.revision import checkout_revision
from gpt2_common.settings import Settings

MAX_WARNING_LENGTH = 2000

_log = logging.getLogger(__name__)
_REPORT_SECONDS = 0.25
_CLAIM_SECONDS = 1.0
_RATE_SECONDS = 5.0


class Interruption:
    """Whether the work has to stop. Set by the thread that receives commands, read by the work."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._suspended = False

    def cancel(self) -> None:
        """Requests the work to stop for good."""
        self._event.set()

    def suspend(self) -> None:
        """Requests the work to stop, to be resumed by another attempt."""
        self._suspended = True
        self._event.set()

    def check(self) -> None:
        """Raises JobCancelled or JobSuspended when the work has to stop."""
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
    actor: str = ""
    """Who started it; empty in jobs of versions that did not know their callers."""


class JobContext(Generic[Settings]):
    """One attempt of one job, as its function sees it.

    Args:
        identity: Which job this is.
        settings: The service's settings.
        send_progress: Sends progress to the service.
        interruption: Whether to stop.
        send_warning: Sends warnings to the service; None: they are in the log and in `warnings` only.
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
        """Warnings of this attempt."""
        self._rates: dict[str, _Rate] = {}
        self._last_report = 0.0
        self._phase = ""
        self._claim: Claim | None = None
        self._claim_checked = 0.0

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.identity.job_id

    @property
    def work(self) -> Path:
        """Folder for unfinished work, kept across attempts until the job has succeeded, or its retention is over."""
        folder = self._store.work.of(self.job_id)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def claim(self) -> None:
        """Makes the job's folders this attempt's: every earlier one ends, wherever it runs."""
        self._claim = Claim.take(self.work)

    @property
    def claim_token(self) -> str:
        """What `join` takes in another process of this attempt; empty where nothing is claimed."""
        return "" if self._claim is None else self._claim.token

    def join(self, claim_token: str) -> None:
        """Makes this process one of the attempt that holds a claim, to which the job's folders belong."""
        self._claim = Claim(self.work, claim_token) if claim_token else None

    def require_claim(self) -> None:
        """Raises JobSuperseded when a later attempt has begun. Call it directly before what that one would see."""
        if self._claim is not None:
            self._claim.check()

    def is_superseded(self) -> bool:
        """Whether a later attempt has begun."""
        try:
            self.require_claim()
        except JobSuperseded:
            return True
        except OSError:
            return False
        return False

    def check_cancelled(self) -> None:
        """Raises JobCancelled, JobSuspended or JobSuperseded when the job has to stop. Call it often; it is cheap."""
        self._interruption.check()
        now = time.monotonic()
        if now - self._claim_checked >= _CLAIM_SECONDS:
            self._claim_checked = now
            self.require_claim()

    def report(
        self,
        phase: str,
        done: float = 0,
        total: float = 0,
        unit: str = "",
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Reports progress. Reports in quick succession are dropped, but never the last of a phase.

        Args:
            phase: Name of the current phase, in a few words.
            done: Units done in this phase.
            total: Units in this phase; 0 while unknown.
            unit: What is counted.
            metrics: Values to show with the progress.
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
        """Adds a warning to the job. The same text is one warning.

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
        """Returns a writer of one output. Its folder may hold files of an earlier attempt."""
        self.require_claim()
        return self._store.create(self.job_id, name, kind, self._producer(), parents, self.require_claim)

    def create_in_place(
        self, name: str, kind: str, parents: Sequence[Artifact] = ()
    ) -> AbstractContextManager[ArtifactWriter]:
        """As `create`, for an output that can be read while it is written."""
        self.require_claim()
        return self._store.create_in_place(self.job_id, name, kind, self._producer(), parents, self.require_claim)

    def committed(self, name: str, kind: str) -> Artifact | None:
        """An output that an earlier attempt has committed; None when there is none for this request."""
        uri = self._store.output_uri(self.job_id, name)
        try:
            artifact = self._store.open(name, uri, kind)
        except Exception:  # noqa: BLE001 - whatever is wrong with it, it is written again
            return None
        same = artifact.manifest.producer.get("request_digest") == self.identity.request_digest
        return artifact if same else None

    def remove_work(self) -> None:
        """Deletes the unfinished work, once the outputs are committed."""
        self.require_claim()
        self._store.work.remove(self.job_id)

    def remove_partial_files(self) -> None:
        """Deletes partial files; what an attempt has finished stays for the next one."""
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
