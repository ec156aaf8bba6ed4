"""Opens and writes artifacts under the configured roots, local or in an object store.

A local artifact is written in a folder beside its place and committed by one rename. In an object store the files are
uploaded first and the manifest last. Either way, what has a manifest is whole.
"""

import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gpt2_common.artifacts.manifest import MANIFEST_NAME, FileEntry, Manifest, Parent, entry_of, scan, sha256_of
from gpt2_common.artifacts.roots import filesystem_of, local_path, require_allowed
from gpt2_common.artifacts.work import WorkFolders
from gpt2_common.durable import sync, write_durable
from gpt2_common.errors import DataLoss, FailedPrecondition, InvalidRequest, NotFound
from gpt2_common.escaping import escape_surrogates
from gpt2_common.failpoints import failpoint
from gpt2_contracts.artifact import DamagedFile, JsonFile, UnsupportedVersion, job_folder_name

File = TypeVar("File", bound=JsonFile)


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact that was opened or committed."""

    uri: str
    manifest: Manifest
    folder: Path
    """Local folder with its files: itself, or a copy of what is in an object store."""

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return self.manifest.digest

    def read(self, contract: type[File]) -> File:
        """Reads one of its JSON files.

        Raises:
            DataLoss: The file is missing or damaged.
            FailedPrecondition: It is of a later version.
        """
        try:
            text = (self.folder / contract.FILE).read_bytes()
        except OSError as error:
            raise DataLoss(f"{self.uri}/{contract.FILE} cannot be read ({error}): {contract.REMEDY}") from error
        return parse_file(contract, text, self.uri)

    def as_parent(self) -> Parent:
        """This artifact as a parent of another."""
        return Parent(self.manifest.kind, self.uri, self.digest)


class ArtifactWriter:
    """Takes the files of a new artifact, and commits them at once.

    Args:
        uri: Where the artifact will be.
        kind: Its kind.
        folder: Local folder for the files. It may contain files of an earlier attempt.
        producer: What makes it.
        parents: What it is made from.
        check: Called directly before the artifact is published; what it raises keeps it from that.
    """

    def __init__(
        self,
        uri: str,
        kind: str,
        folder: Path,
        producer: Mapping[str, str],
        parents: Sequence[Artifact],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.uri = uri
        self.folder = folder
        self._kind = kind
        self._producer = dict(producer)
        self._parents = tuple(parent.as_parent() for parent in parents)
        self._check = check
        self._hashed: dict[Path, FileEntry] = {}

    def hash_file(self, path: Path) -> None:
        """Hashes a finished file of the folder, so that `commit` does not read it. It must not change from then on."""
        self._hashed[path] = entry_of(path, self.folder)

    def commit(
        self, counts: Mapping[str, float] | None = None, properties: Mapping[str, str] | None = None
    ) -> Artifact:
        """Publishes the artifact: readers find all of it or nothing. One that is there already is moved away.

        Args:
            counts: What is in it, by unit.
            properties: Facts that are no counts.
        """
        manifest = Manifest(
            kind=self._kind,
            files=scan(self.folder, self._hashed),
            producer=self._producer,
            parents=self._parents,
            counts=counts or {},
            properties={name: escape_surrogates(value) for name, value in (properties or {}).items()},
        )
        target = local_path(self.uri)
        if target is None:
            return self._upload(manifest)
        for entry in manifest.files:
            sync(self.folder / entry.path)
        if self.folder == target:
            self._check()
        write_durable(self.folder / MANIFEST_NAME, manifest.to_json())
        if self.folder != target:
            failpoint("before-artifact-rename")
            self._check()
            _replace(self.folder, target)
            failpoint("after-artifact-rename")
        return Artifact(self.uri, manifest, target)

    def _upload(self, manifest: Manifest) -> Artifact:
        filesystem, root = filesystem_of(self.uri)
        for entry in manifest.files:
            self._check()
            filesystem.put_file(str(self.folder / entry.path), f"{root}/{entry.path}")
        (self.folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
        self._check()
        filesystem.put_file(str(self.folder / MANIFEST_NAME), f"{root}/{MANIFEST_NAME}")
        return Artifact(self.uri, manifest, self.folder)


class ArtifactStore:
    """The artifacts that a service may read and write.

    Args:
        root: URI that new artifacts are written under.
        roots: URIs that artifacts may be read under, `root` among them.
        scratch: Local folder for work in progress and for copies, where a root is remote.
    """

    def __init__(self, root: str, roots: Sequence[str], scratch: Path) -> None:
        self.root = root
        self.roots = tuple(roots)
        self.work = WorkFolders(root, scratch)

    def require_allowed(self, field: str, uri: str) -> str:
        """Normalises a URI of a request. Raises InvalidRequest, naming the field, when it is outside the roots."""
        return require_allowed(field, uri, self.roots)

    def output_uri(self, job_id: str, name: str) -> str:
        """URI of one output of a job."""
        return f"{self.root}/{job_folder_name(job_id)}/{name}"

    def read_manifest(self, field: str, uri: str, kind: str) -> tuple[str, Manifest]:
        """Reads and checks the manifest alone.

        Args:
            field: Name of the request's field, for errors.
            uri: The artifact's URI as the request has it.
            kind: Kind that it must have.

        Returns:
            The normalised URI and the manifest.

        Raises:
            InvalidRequest: The URI is outside the roots, or the artifact is of another kind.
            NotFound: There is no finished artifact.
            DataLoss, FailedPrecondition: The manifest is damaged, or of an unknown version.
        """
        uri = self.require_allowed(field, uri)
        filesystem, root = filesystem_of(uri)
        try:
            text = filesystem.cat_file(f"{root}/{MANIFEST_NAME}").decode("utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFound(
                f"{field}: {uri} is no artifact, as it has no {MANIFEST_NAME}: "
                "the address is wrong, or what makes it has not finished",
                uri=uri,
            ) from None
        except PermissionError:
            raise NotFound(f"{field}: {uri} may not be read by this service: check its permissions", uri=uri) from None
        manifest = Manifest.from_json(text, uri)
        if manifest.kind != kind:
            raise InvalidRequest([(field, f"{uri} is a {manifest.kind} artifact; a {kind} artifact is needed")])
        return uri, manifest

    def open(self, field: str, uri: str, kind: str, *, verify: bool = False) -> Artifact:
        """Opens an artifact and checks that its files are there with their sizes.

        Args:
            field: Name of the request's field, for errors.
            uri: The artifact's URI.
            kind: Kind that it must have.
            verify: Check every file's SHA-256 too.

        Raises:
            DataLoss: A file is missing or not as it was written. Others as `read_manifest`.
        """
        uri, manifest = self.read_manifest(field, uri, kind)
        folder = local_path(uri)
        if folder is None:
            folder = self._download(uri, manifest)
        artifact = Artifact(uri, manifest, folder)
        check_files(artifact, verify=verify)
        return artifact

    @contextmanager
    def create(
        self,
        job_id: str,
        name: str,
        kind: str,
        producer: Mapping[str, str],
        parents: Sequence[Artifact] = (),
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[ArtifactWriter]:
        """Yields a writer for one output of a job; its folder may contain files of an earlier attempt."""
        folder = self.work.of(job_id) / name
        folder.mkdir(parents=True, exist_ok=True)
        yield ArtifactWriter(self.output_uri(job_id, name), kind, folder, producer, parents, check)

    @contextmanager
    def create_in_place(
        self,
        job_id: str,
        name: str,
        kind: str,
        producer: Mapping[str, str],
        parents: Sequence[Artifact] = (),
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[ArtifactWriter]:
        """As `create`, but local files are written in their final place, so that readers can follow them.

        It is no artifact until it is committed.
        """
        uri = self.output_uri(job_id, name)
        folder = local_path(uri) or self.work.of(job_id) / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        yield ArtifactWriter(uri, kind, folder, producer, parents, check)

    def _download(self, uri: str, manifest: Manifest) -> Path:
        target = self.work.downloads / manifest.digest
        if (target / MANIFEST_NAME).exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{manifest.digest[:16]}-", dir=target.parent))
        filesystem, root = filesystem_of(uri)
        for entry in manifest.files:
            (temporary / entry.path).parent.mkdir(parents=True, exist_ok=True)
            filesystem.get_file(f"{root}/{entry.path}", str(temporary / entry.path))
        check_files(Artifact(uri, manifest, temporary), verify=True)
        for entry in manifest.files:
            sync(temporary / entry.path)
        write_durable(temporary / MANIFEST_NAME, manifest.to_json())
        _keep_first(temporary, target)
        return target


def parse_file(contract: type[File], text: bytes, uri: str) -> File:
    """Reads the text of a JSON file of the artifact at a URI.

    Raises:
        DataLoss: It is damaged.
        FailedPrecondition: It is of a later version.
    """
    try:
        return contract.from_text(text)
    except DamagedFile as error:
        raise DataLoss(f"{uri}/{contract.FILE} is damaged ({error}): {contract.REMEDY}") from error
    except UnsupportedVersion as error:
        raise FailedPrecondition(f"{uri}: {error}") from error


def check_files(artifact: Artifact, *, verify: bool) -> None:
    """Checks the files of an artifact against its manifest.

    Args:
        artifact: What to check.
        verify: Check every file's SHA-256, not its size alone.

    Raises:
        DataLoss: A file is missing or not as it was written.
    """
    for entry in artifact.manifest.files:
        path = artifact.folder / entry.path
        problem = _problem(path, entry, verify)
        if problem:
            raise DataLoss(f"{artifact.uri}/{entry.path} {problem}: make the artifact again", uri=artifact.uri)


def _problem(path: Path, entry: FileEntry, verify: bool) -> str:
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != entry.size:
        return f"has {path.stat().st_size} bytes instead of {entry.size}"
    if verify and sha256_of(path) != entry.sha256:
        return "is not what was written (its SHA-256 differs)"
    return ""


def _keep_first(source: Path, target: Path) -> None:
    """Moves a copy to its place by one rename, or deletes it where another process has put the same there meanwhile.

    That one is not replaced: jobs may be reading it.
    """
    while True:
        try:
            source.rename(target)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if (target / MANIFEST_NAME).exists():
            shutil.rmtree(source)
            return
        # The remains of a copy that somebody began to delete.
        old = Path(tempfile.mkdtemp(prefix=".old-", dir=source.parent))
        with suppress(FileNotFoundError):
            target.rename(old / target.name)
        shutil.rmtree(old)
    sync(target.parent)


def _replace(source: Path, target: Path) -> None:
    """Moves a folder to its place by one rename, after an existing one has been moved away."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=".old-", dir=source.parent))
        target.rename(old / target.name)
        shutil.rmtree(old)
    source.rename(target)
    sync(target.parent)
