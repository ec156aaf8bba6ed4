"""A disk that is full in the middle of each kind of job.

The job's folder is a small separate file system; for a registration, the folder of MLflow's files is one too. The job
fails with RESOURCE_EXHAUSTED, the artifacts and versions made before it are untouched, no half-written file and no
version is left, and with more room it is continued to the artifact, or the one version, that it would have made.
"""

import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from google.rpc import code_pb2
from mlflow import MlflowClient

from gpt2_catalogue import default_stage_name
from gpt2_common.artifacts import Manifest
from gpt2_common.artifacts.manifest import sha256_of
from gpt2_common.artifacts.roots import local_path
from gpt2_common.artifacts.store import Artifact, check_files

from .runs import FIRST, UNDISTURBED, Job, check, digests, finish, request_of, start, wait_for_job
from .services import FaultStack

LONG = os.environ.get("GPT2_FAULTS") == "long"
# Parts of the room that the job's artifacts need; 0 is a single page.
PARTS = (0, 0.2, 0.4, 0.6, 0.8, 0.95) if LONG else (0.6,)
KINDS = (
    "ExportCorpus",
    "TrainTokenizer",
    "EncodeCorpus",
    "TrainModel",
    "ExportModel",
    "EvaluateModel",
    "ImportCheckpoint",
)
REPRESENTATIVES = ("EncodeCorpus", "TrainModel")
"""One that writes its artifact in one go, and one that writes for as long as it runs."""
# These write what others of the kinds write too.
KINDS_OF_LONG_FORM = ("ImportFiles", "ImportTokenizer")
_PAGE = 4096


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system in memory at a folder. Skips the test where none can be mounted."""
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def give_room(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True)


def folders(job: Job) -> list[Path]:
    """Those of a job's artifacts; a version is none of this disk."""
    return [folder for output in job.outputs if (folder := local_path(output.uri)) is not None]


def check_whole(artifacts: Iterable[Path]) -> None:
    for folder in artifacts:
        manifest = Manifest.from_json((folder / "manifest.json").read_text(), str(folder))
        check_files(Artifact(folder.as_uri(), manifest, folder), verify=True)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind in REPRESENTATIVES else pytest.mark.exhaustive)
        for kind in KINDS + (KINDS_OF_LONG_FORM if LONG else ())
    ],
)
def test_a_job_that_finds_the_disk_full_fails_cleanly_and_is_continued(stack, undisturbed, kind, part, report):
    run_id = f"full-{default_stage_name(kind)}-{part}"
    folder = stack.folder.artifacts / f"{run_id}~{default_stage_name(kind)}"
    needed = size_of(folders(undisturbed[kind]))
    room = max(_PAGE, int(needed * part))
    with small_disk(folder, room):
        start(stack, run_id, {} if kind == FIRST else {kind: request_of(kind, stack, undisturbed)})
        failed = wait_for_job(stack, run_id, kind, Job.STATE_FAILED)
        assert failed.error.code == code_pb2.RESOURCE_EXHAUSTED, failed.error.message
        assert not half_written(folder)
        # Of several outputs, those before the last can be whole already.
        check_whole(path.parent for path in folder.glob("*/manifest.json"))
        check_whole(made for job in undisturbed.values() for made in folders(job))
        give_room(folder)
        with stack.owner(kind).connect() as client:
            client.continue_run(run_id)
        jobs = finish(stack, run_id, kind)
        check(stack, run_id, jobs)
        made = digests({kind: jobs[kind]})
        assert made == digests({kind: undisturbed[kind]})
    report(f"{found_full(failed)}; {len(made)} files equal when continued", table(failed, room, needed))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("whose", [pytest.param("job", marks=pytest.mark.exhaustive), "mlflow"])
def test_a_registration_that_finds_a_disk_full_leaves_no_version_and_is_continued_to_one(
    stack, undisturbed, whose, part, report
):
    kind = "RegisterModel"
    run_id = f"full-{whose}-{part}"
    mlflow = Mlflow(stack)
    # A registration of this name finds it, and puts its files there.
    experiment = mlflow.client.create_experiment(run_id)
    if whose == "job":
        folder = stack.folder.artifacts / f"{run_id}~{default_stage_name(kind)}"
        needed = size_of([mlflow.report(UNDISTURBED)])
    else:
        folder = mlflow.files / experiment
        needed = size_of(folders(undisturbed["ExportModel"]))
    room = max(_PAGE, int(needed * part))
    before = mlflow.contents()
    with small_disk(folder, room):
        start(stack, run_id, {kind: {**request_of(kind, stack, undisturbed), "model_name": run_id}})
        failed = wait_for_job(stack, run_id, kind, Job.STATE_FAILED)
        assert failed.error.code == code_pb2.RESOURCE_EXHAUSTED, failed.error.message
        assert not half_written(folder)
        assert not mlflow.versions(run_id)
        assert mlflow.versions(UNDISTURBED) == [1]
        assert mlflow.contents().items() >= before.items()
        check_whole(made for job in undisturbed.values() for made in folders(job))
        give_room(folder)
        with stack.owner(kind).connect() as client:
            client.continue_run(run_id)
        # That the version is the only one, it checks too.
        check(stack, run_id, finish(stack, run_id, kind))
        assert mlflow.served(run_id) == mlflow.served(UNDISTURBED)
    report(f"{found_full(failed)}; no version left, one when continued", table(failed, room, needed))


class Mlflow:
    """What MLflow has, and where its files are."""

    def __init__(self, stack: FaultStack) -> None:
        uri = f"http://{stack.addresses['mlflow']}"
        self.client = MlflowClient(uri, uri)
        self.files = stack.folder.root / "data" / "mlflow" / "artifacts"

    def versions(self, name: str) -> list[int]:
        return [int(version.version) for version in self.client.search_model_versions(f"name='{name}'")]

    def report(self, name: str) -> Path:
        """The folder with the report of a model's first version, all that its job keeps on its own disk."""
        run = self.client.get_run(self.client.get_model_version(name, "1").run_id)
        folder = local_path(run.info.artifact_uri)
        assert folder is not None
        return folder

    def served(self, name: str) -> dict[str, str]:
        """SHA-256 of each file that the first version of a model serves with."""
        model = local_path(self.client.get_model_version_download_uri(name, "1"))
        assert model is not None
        folder = model / "artifacts"
        return {str(path.relative_to(folder)): sha256_of(path) for path in folder.rglob("*") if path.is_file()}

    def contents(self) -> dict[Path, str]:
        """SHA-256 of each file."""
        return {path: sha256_of(path) for path in self.files.rglob("*") if path.is_file()}


def half_written(folder: Path) -> list[Path]:
    """Files that were begun and not finished, and temporary ones."""
    return [path for path in folder.rglob("*") if path.name.endswith((".part", ".tmp")) or path.name.startswith("tmp")]


def size_of(artifacts: Iterable[Path]) -> int:
    return sum(path.stat().st_size for made in artifacts for path in made.rglob("*") if path.is_file())


def found_full(failed: Job) -> str:
    return f"RESOURCE_EXHAUSTED while {failed.progress.phase or 'beginning'}, all made before it whole"


def table(failed: Job, room: int, needed: int) -> list[list[str]]:
    return [
        ["stage", "room of needed bytes", "in phase", "error"],
        [failed.kind, f"{room:,} of {needed:,}", failed.progress.phase, failed.error.message],
    ]
