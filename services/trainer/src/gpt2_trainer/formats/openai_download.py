"""Downloads OpenAI's models: checked, resumed, retried, and cached.

A file gets its name only when it is complete and verified. Checked are status, type and length of the response, the MD5
that the server sends (Azure's blob storage does) and, for files whose SHA-256 is known, that. For the others the
SHA-256 of the first download is kept beside them, and the cached file is checked against it on each use.
"""

import base64
import fcntl
import hashlib
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from gpt2_common.artifacts.manifest import sha256_of
from gpt2_common.errors import DataLoss, FailedPrecondition, NotFound, Unavailable
from gpt2_contracts import openai
from gpt2_proxies import opener_for, web_proxy_note

_log = logging.getLogger(__name__)

_PINS = "sha256.json"
_BLOCK = 1 << 18
_ATTEMPTS = 5
_LOCK_POLL_SECONDS = 0.2
_MAX_WAIT_SECONDS = 30.0
_ERROR_PAGES = ("text/html", "application/xml", "text/xml")
_OK, _PARTIAL, _NOT_SATISFIABLE, _SERVER_ERROR = 200, 206, 416, 500
_GONE = (404, 410)
_TRY_LATER = (408, 425, 429)


class _Retry(Exception):
    """The transfer broke or is refused for now; the bytes received are kept."""


@dataclass(frozen=True, kw_only=True)
class ModelDownload:
    """One model.

    Args:
        base_url: Folder of the models.
        model: Official name of the size, such as 124M.
        cache: Local folder for all models.
        timeout_seconds: Timeout of each read from the server.
        on_progress: Called with bytes done and total bytes of the current file; what it raises ends the download.
        known_sha256: Checksums by file name, or by model and file name.
        known_sizes: Sizes in bytes, likewise.
        files: Names of the files that make the model.
        first_wait_seconds: Wait before the second attempt; it doubles with each.
    """

    base_url: str
    model: str
    cache: Path
    timeout_seconds: float
    on_progress: Callable[[int, int], None]
    known_sha256: Mapping[str, str] = field(default_factory=lambda: openai.SHA256)
    known_sizes: Mapping[str, int] = field(default_factory=lambda: openai.SIZES)
    files: Sequence[str] = openai.FILES
    first_wait_seconds: float = 1.0

    @property
    def address(self) -> str:
        """URL of the model's folder."""
        return f"{self.base_url.rstrip('/')}/{self.model}"

    def run(self) -> Path:
        """Downloads what is not in the cache. Returns the model's folder.

        Raises:
            NotFound: The server has no such file.
            Unavailable: The server does not answer, or refuses.
            DataLoss: What it sends is not the file.
        """
        folder = self.cache / self.model
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock", lambda: self.on_progress(0, 0)):
            pins = _read_pins(folder / _PINS)
            for name in self.files:
                if not self._is_cached(folder / name, pins):
                    pins[name] = self._download(folder / name)
                    (folder / f".{_PINS}").write_text(json.dumps(pins, indent=2) + "\n", encoding="utf-8")
                    (folder / f".{_PINS}").replace(folder / _PINS)
        return folder

    def _expected_sha256(self, name: str) -> str | None:
        return self.known_sha256.get(f"{self.model}/{name}") or self.known_sha256.get(name)

    def _is_cached(self, path: Path, pins: Mapping[str, str]) -> bool:
        if not path.is_file():
            return False
        expected = self._expected_sha256(path.name) or pins.get(path.name)
        if expected is not None and sha256_of(path) == expected:
            return True
        _log.warning("%s in the cache is not what was downloaded: it is downloaded again", path)
        path.unlink()
        return False

    def _download(self, path: Path) -> str:
        """Downloads one file. Returns its SHA-256."""
        part = path.with_name(f"{path.name}.part")
        waits, failures, had = self.first_wait_seconds, 0, _size(part)
        while True:
            try:
                md5 = self._transfer(path.name, part)
                break
            except _Retry as problem:
                # While bytes keep coming, a bad connection may break any number of times.
                progressed, had = _size(part) > had, _size(part)
                failures, waits = (1, self.first_wait_seconds) if progressed else (failures + 1, waits * 2)
                if failures >= _ATTEMPTS:
                    raise Unavailable(
                        f"{self.address}/{path.name} cannot be downloaded: {problem}{web_proxy_note(self.address)}; "
                        "what has arrived is kept: "
                        "retry the job later, or set GPT2_OPENAI_BASE_URL to a mirror"
                    ) from problem
                _log.warning("%s: %s, trying again", path.name, problem)
                self.on_progress(had, 0)
                time.sleep(min(waits, _MAX_WAIT_SECONDS))
        sha256 = self._check(path.name, part, md5)
        part.replace(path)
        _tag_of(part).unlink(missing_ok=True)
        return sha256

    def _transfer(self, name: str, part: Path) -> str | None:
        """Reads one response to its end. Returns the MD5 that the server sent for the whole file."""
        have, tag = _size(part), _tag_of(part)
        request = urllib.request.Request(f"{self.address}/{name}", headers={"Accept-Encoding": "identity"})
        if have:
            request.add_header("Range", f"bytes={have}-")
            if tag.exists():
                # If the file has changed meanwhile, the server sends the new one whole.
                request.add_header("If-Range", tag.read_text(encoding="utf-8"))
        try:
            with opener_for(request.full_url).open(request, timeout=self.timeout_seconds) as response:
                return self._receive(name, response, part, have)
        except urllib.error.HTTPError as error:
            if error.code == _NOT_SATISFIABLE and error.headers.get("Content-Range") == f"bytes */{have}":
                return None  # Everything had been received.
            raise self._refusal(name, error, part) from error
        except (OSError, HTTPException) as error:
            raise _Retry(str(error) or type(error).__name__) from error

    def _receive(self, name: str, response: HTTPResponse, part: Path, have: int) -> str | None:
        kind = response.headers.get_content_type()
        if kind in _ERROR_PAGES:
            raise Unavailable(
                f"{self.address}/{name}: the server answers with a page ({kind}) instead of the file: "
                "set GPT2_OPENAI_BASE_URL to a server that has OpenAI's models"
            )
        start, total = _extent(response, have)
        if etag := response.headers.get("ETag"):
            _tag_of(part).write_text(etag, encoding="utf-8")
        with part.open("r+b" if part.exists() else "wb") as file:
            file.truncate(start)
            file.seek(start)
            done = start
            # Whatever has arrived: if the connection stalls, no received byte is lost.
            while block := response.read1(_BLOCK):
                file.write(block)
                done += len(block)
                self.on_progress(done, total or 0)
        if total is not None and done < total:
            raise _Retry(f"the connection ended after {done:,} of {total:,} bytes")
        whole = response.headers.get("x-ms-blob-content-md5")
        return whole or (response.headers.get("Content-MD5") if response.status == _OK else None)

    def _refusal(self, name: str, error: urllib.error.HTTPError, part: Path) -> Exception:
        """The exception for an error response."""
        address = f"{self.address}/{name}"
        if error.code == _NOT_SATISFIABLE:
            # The received part does not fit the server's file: start again.
            part.unlink(missing_ok=True)
            return _Retry("the part downloaded so far does not fit the file")
        if error.code in _GONE:
            return NotFound(
                f"{address} does not exist (HTTP {error.code}): set GPT2_OPENAI_BASE_URL to a server that has it"
            )
        if error.code in _TRY_LATER or error.code >= _SERVER_ERROR:
            return _Retry(f"the server answers HTTP {error.code}")
        return FailedPrecondition(
            f"{address} is refused (HTTP {error.code} {error.reason}): check GPT2_OPENAI_BASE_URL"
        )

    def _check(self, name: str, part: Path, md5: str | None) -> str:
        """Verifies a complete file. Returns its SHA-256."""
        sha256 = sha256_of(part)
        size = self.known_sizes.get(f"{self.model}/{name}")
        expected = self._expected_sha256(name)
        problem = ""
        if size is not None and _size(part) != size:
            problem = f"has {_size(part):,} bytes instead of {size:,}"
        elif expected is not None and sha256 != expected:
            problem = f"has the SHA-256 {sha256} instead of {expected}"
        elif md5 is not None and _md5_of(part) != md5:
            problem = "has not the MD5 that the server gave"
        if problem:
            part.unlink()
            raise DataLoss(f"{self.address}/{name} {problem}: retry the job, or set GPT2_OPENAI_BASE_URL to a mirror")
        return sha256


def _extent(response: HTTPResponse, have: int) -> tuple[int, int | None]:
    """Offset of a response's bytes in the file, and the file's size where the server sends it."""
    length = response.headers.get("Content-Length")
    if response.status != _PARTIAL:
        return 0, int(length) if length else None
    # `bytes 100-199/200`
    unit, _, extent = response.headers.get("Content-Range", "").partition(" ")
    first, _, rest = extent.partition("-")
    total = rest.partition("/")[2]
    if unit != "bytes" or not first.isdecimal() or int(first) > have:
        raise _Retry("the server sent another part than was asked for")
    return int(first), int(total) if total.isdecimal() else None


def _md5_of(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return base64.b64encode(digest.digest()).decode()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _tag_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _read_pins(path: Path) -> dict[str, str]:
    try:
        content: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content


@contextmanager
def _locked(path: Path, while_waiting: Callable[[], None]) -> Iterator[None]:
    """Keeps other processes from downloading the same model at the same time."""
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                while_waiting()
                time.sleep(_LOCK_POLL_SECONDS)
        yield
