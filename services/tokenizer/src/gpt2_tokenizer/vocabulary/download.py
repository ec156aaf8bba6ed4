"""Downloads tokenizers from the URLs that the settings allow, among them OpenAI's.

A request cannot make the service fetch any other address: its URL must be in normal form and under an allowed one, and
redirects elsewhere are refused. Downloads are limited in size and time, and checked to be complete.
"""

import posixpath
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from gpt2_common.durable import write_durable
from gpt2_common.errors import DataLoss, FailedPrecondition, InvalidRequest, NotFound, Unavailable
from gpt2_contracts.openai import TOKENIZER_NAME as OPENAI
from gpt2_contracts.tokenizer import (
    ENCODER_FILE,
    HUGGINGFACE_ENCODER_FILE,
    HUGGINGFACE_MERGES_FILE,
    MERGES_FILE,
    TOKENIZER_FILE,
)
from gpt2_proxies import opener_for, web_proxy_note
from gpt2_tokenizer.settings import TokenizerSettings

MAX_FILE_BYTES = 256 << 20

_CHOICES = ((ENCODER_FILE, MERGES_FILE), (HUGGINGFACE_ENCODER_FILE, HUGGINGFACE_MERGES_FILE), (TOKENIZER_FILE,))
_BLOCK = 1 << 16
_ATTEMPTS = 4
_PAGE_TYPES = ("text/html", "application/xml", "text/xml")
_MISSING_CODES = (403, 404, 410)
_RETRY_CODES = (408, 425, 429)
_SERVER_ERROR = 500


class _Retry(Exception):
    """The transfer was interrupted, or the server refuses it for the moment."""


class _Missing(Exception):
    """The server does not have the file."""


def is_download(uri: str) -> bool:
    """Whether the URI of a request is to be downloaded."""
    return uri == OPENAI or uri.lower().startswith(("http://", "https://"))


def download_url(uri: str, settings: TokenizerSettings) -> str:
    """Returns the URL of a request's URI. Raises InvalidRequest when the settings do not allow it."""
    if uri == OPENAI:
        return f"{settings.openai_base_url.rstrip('/')}/124M"
    url = uri.rstrip("/")
    if not _is_allowed(url, settings.download_urls):
        raise InvalidRequest(
            [
                (
                    "uri",
                    f"{uri[:200]!r} is not under an allowed URL: add its folder to GPT2_ALLOWED_ROOTS",
                )
            ]
        )
    return url


@dataclass(frozen=True, kw_only=True)
class TokenizerDownload:
    """One tokenizer on a server.

    Args:
        url: Its folder, or its `tokenizer.json`.
        allowed: URLs that redirects may lead under.
        folder: Folder for the files.
        timeout_seconds: Maximum time without data from the server.
        check_cancelled: Called for each block; raises when the job has to stop.
        known_sha256: Expected SHA-256 digests, in hexadecimal, by file name.
        first_wait_seconds: Wait before the second attempt; doubles with each attempt.
        max_bytes: Maximum bytes of one file.
    """

    url: str
    allowed: Sequence[str]
    folder: Path
    timeout_seconds: float
    check_cancelled: Callable[[], None]
    known_sha256: Mapping[str, str] = field(default_factory=dict)
    first_wait_seconds: float = 1.0
    max_bytes: int = MAX_FILE_BYTES

    def run(self) -> Path:
        """Downloads the files. Returns their folder.

        Raises:
            NotFound: The server has no complete set of a tokenizer's files.
            Unavailable: The server does not answer, refuses, or sends a web page instead.
            DataLoss: A file has another digest than expected.
            FailedPrecondition: A file is too large, or a redirect leads elsewhere.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.url.endswith(".json"):
            choices: Sequence[tuple[str, ...]] = ((self.url.rpartition("/")[2],),)
            base = self.url.rpartition("/")[0]
        else:
            choices, base = _CHOICES, self.url
        for names in choices:
            try:
                contents = [self._download(f"{base}/{name}") for name in names]
            except _Missing:
                continue
            for name, content in zip(names, contents, strict=True):
                self._check(name, content)
                write_durable(self.folder / (TOKENIZER_FILE if len(names) == 1 else name), content)
            return self.folder
        raise NotFound(f"uri: {self.url} has no {' nor '.join(' and '.join(names) for names in choices)}", uri=self.url)

    def _download(self, url: str) -> bytes:
        wait = self.first_wait_seconds
        for attempt in range(1, _ATTEMPTS + 1):
            self.check_cancelled()
            try:
                return self._transfer(url)
            except _Retry as problem:
                if attempt == _ATTEMPTS:
                    raise Unavailable(
                        f"{url} cannot be downloaded: {problem}{web_proxy_note(url)}; retry the job later"
                    ) from problem
            time.sleep(wait)
            wait *= 2
        raise AssertionError

    def _transfer(self, url: str) -> bytes:
        opener = opener_for(url, _Redirects(self.allowed))
        request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
        try:
            with opener.open(request, timeout=self.timeout_seconds) as response:
                return self._receive(url, response)
        except urllib.error.HTTPError as error:
            if error.code in _MISSING_CODES:
                raise _Missing from error
            if error.code in _RETRY_CODES or error.code >= _SERVER_ERROR:
                raise _Retry(f"the server answers HTTP {error.code}") from error
            raise Unavailable(f"{url} is refused (HTTP {error.code} {error.reason}): check the address") from error
        except (OSError, HTTPException) as error:
            raise _Retry(str(error) or type(error).__name__) from error

    def _receive(self, url: str, response: HTTPResponse) -> bytes:
        kind = response.headers.get_content_type()
        if kind in _PAGE_TYPES:
            raise Unavailable(f"{url}: the server answers with a page ({kind}) instead of the file: check the address")
        received = bytearray()
        while block := response.read1(_BLOCK):
            self.check_cancelled()
            received += block
            if len(received) > self.max_bytes:
                raise FailedPrecondition(
                    f"{url} is larger than {self.max_bytes} bytes: it is not a file of a tokenizer"
                )
        length = response.headers.get("Content-Length")
        if length is not None and len(received) != int(length):
            raise _Retry(f"the connection ended after {len(received):,} of {int(length):,} bytes")
        return bytes(received)

    def _check(self, name: str, content: bytes) -> None:
        expected = self.known_sha256.get(name)
        found = sha256(content).hexdigest()
        if expected is not None and found != expected:
            raise DataLoss(
                f"{self.url}/{name} has the SHA-256 {found} instead of {expected}: set GPT2_OPENAI_BASE_URL to a "
                "server that has OpenAI's files"
            )


class _Redirects(urllib.request.HTTPRedirectHandler):
    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = allowed

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not _is_allowed(newurl, self._allowed):
            raise FailedPrecondition(
                f"{req.full_url} redirects to {urlsplit(newurl).netloc}, which is not allowed: "
                "add where it leads to GPT2_ALLOWED_ROOTS"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_allowed(url: str, allowed: Sequence[str]) -> bool:
    parts = urlsplit(url)
    plain = not (set(url) & set("%\\?#@ \t\r\n")) and url.isascii() and url.isprintable() and len(url) <= 2048
    normal = posixpath.normpath(parts.path or "/") == (parts.path or "/")
    return plain and normal and any(url == root or url.startswith(f"{root}/") for root in allowed)
