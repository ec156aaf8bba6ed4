"""Downloads from a Hugging Face hub: the files of a model that are needed, at one commit, checked and cached.

`huggingface_hub`, which only the tokenizer and the trainer depend on, speaks with the hub that HF_ENDPOINT names, with
the token in HF_TOKEN. Its cache keeps whole files, so that an attempt after a crash resumes with the next one.
"""

import hashlib
import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from gpt2_common.errors import DataLoss, FailedPrecondition, InvalidRequest, NotFound, PipelineError, Unavailable
from gpt2_common.hub import HubAddress

_REFUSED = (401, 403)
_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class HubDownload:
    """One model of a hub.

    Args:
        address: The model.
        cache: Local folder for all models.
        timeout_seconds: Maximum time without data from the hub.
        choose: Returns which of the model's files are needed, by their names; what it raises ends the download.
        on_progress: Called with bytes done and bytes in all of the file under way; what it raises ends the download.
    """

    address: HubAddress
    cache: Path
    timeout_seconds: float
    choose: Callable[[Collection[str]], Collection[str]]
    on_progress: Callable[[int, int], None]

    @property
    def endpoint(self) -> str:
        """The hub's address."""
        return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")

    def run(self) -> tuple[Path, str]:
        """Downloads what is not in the cache.

        Returns:
            The folder with the files, and the commit that the revision is.

        Raises:
            NotFound: The hub has no such model or revision, or shows it to nobody without a token.
            FailedPrecondition: The model is gated, the token is refused, or the hub is not to be asked.
            Unavailable: The hub does not answer, or refuses for now.
            DataLoss: A file does not have the hub's checksum.
        """
        try:
            return self._run()
        except PipelineError:
            raise
        except HFValidationError as error:
            raise InvalidRequest([("uri", f"{self.address.root} is no model of a hub: {error}")]) from error
        except (OfflineModeIsEnabled, HfHubHTTPError, EntryNotFoundError, FileMetadataError) as error:
            raise self._refusal(error) from error
        except httpx2.HTTPError as error:
            raise self._unavailable(error) from error

    def _run(self) -> tuple[Path, str]:
        address = self.address
        self.on_progress(0, 0)
        info = HfApi(endpoint=self.endpoint).model_info(
            address.repository, revision=address.revision, timeout=self.timeout_seconds
        )
        commit, names = str(info.sha), [item.rfilename for item in info.siblings or []]
        paths = [self._file(name, commit) for name in sorted(self.choose(names))]
        folder = paths[0].parent if paths else self.cache
        return folder, commit

    def _file(self, name: str, commit: str) -> Path:
        path = hf_hub_download(
            self.address.repository,
            name,
            revision=commit,
            cache_dir=self.cache,
            endpoint=self.endpoint,
            etag_timeout=self.timeout_seconds,
            tqdm_class=_progress_of(self.on_progress),
        )
        self._check(Path(path))
        return Path(path)

    def _check(self, path: Path) -> None:
        """Compares a file with its checksum: the hub's ETag, by which the cache names the blob."""
        blob = path.resolve()
        if blob.name != path.name and not _has_digest(blob, blob.name):
            path.unlink()
            blob.unlink()
            raise DataLoss(
                f"uri: {self.address.root}: {path.name} does not have the checksum of the hub's ETag: retry the job"
            )

    def _refusal(self, error: Exception) -> PipelineError:
        """What to raise for an error of the hub."""
        repository, where = self.address.repository, f"uri: {self.address.root}"
        if isinstance(error, OfflineModeIsEnabled):
            return FailedPrecondition(
                f"{where} cannot be looked up while HF_HUB_OFFLINE is set: unset it, or name a local folder"
            )
        if isinstance(error, GatedRepoError):
            return FailedPrecondition(
                f"{where} is gated: accept its conditions at {self.endpoint}/{repository}, and set HF_TOKEN to a "
                "token of that account"
            )
        if isinstance(error, RevisionNotFoundError):
            return NotFound(f"{where} has no revision {self.address.revision!r}: name a branch, a tag or a commit")
        if isinstance(error, RepositoryNotFoundError):
            return NotFound(
                f"{where} does not exist at {self.endpoint}, or is private: check its name, and set HF_TOKEN where "
                "it needs a token"
            )
        if isinstance(error, LocalEntryNotFoundError):
            # It means no more than that the cache has no such file either.
            cause = error.__cause__
            return self._refusal(cause) if isinstance(cause, HfHubHTTPError) else self._unavailable(cause or error)
        if isinstance(error, EntryNotFoundError):
            return NotFound(f"{where} lacks a file that its listing names ({error}): retry the job")
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
        if status in _REFUSED:
            return FailedPrecondition(
                f"{where}: the hub refuses the token (HTTP {status}): set HF_TOKEN to one that may read {repository}"
            )
        return self._unavailable(error)

    def _unavailable(self, error: BaseException) -> Unavailable:
        reason = str(error).partition("\n")[0] or type(error).__name__
        return Unavailable(
            f"uri: {self.address.root} cannot be downloaded from {self.endpoint}: {reason}; whole files that have "
            "arrived are kept: retry the job later, or set HF_ENDPOINT to a mirror"
        )


def _progress_of(report: Callable[[int, int], None]) -> type[Any]:
    """A progress bar that shows nothing and reports bytes."""

    class Progress(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})  # type: ignore[no-untyped-call]
            self._done, self._all = int(options.get("initial") or 0), int(options.get("total") or 0)

        def update(self, n: float | None = 1) -> None:
            self._done += int(n or 0)
            report(self._done, self._all)

    return Progress


def _has_digest(path: Path, digest: str) -> bool:
    """Whether a file has a digest: SHA-256, or that of git's blobs; True where it is neither."""
    if re.fullmatch("[0-9a-f]{64}", digest):
        found = hashlib.sha256()
    elif re.fullmatch("[0-9a-f]{40}", digest):
        found = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        return True
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest() == digest
