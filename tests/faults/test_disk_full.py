"""A disk that is full in the middle of each kind of job that writes artifacts.

The job's folder is a small file system of its own. The job fails with RESOURCE_EXHAUSTED, what was made before it is
untouched, no half-written file is left, and with more room it is continued to the artifact that it would have been.
"""

import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from google.rpc import code_pb2

from gpt2_common.artifacts import Manifest
from gpt2_common.artifacts.store import Artifact, check_files
from gpt2_common.jobs.options import default_name

from .runs import FIRST, Job, all_stages, check, digests, finish, print_report, start, wait_for_job
from .services import FaultStack

LONG = os.environ.get("GPT2_FAULTS") == "long"
# Parts of the room that the job's artifacts need; 0 is a single page.
PARTS = (0, 0.2, 0.4, 0.6, 0.8, 0.95) if LONG else (0.6,)
KINDS = ("ExportCorpus", "TrainTokenizer", "EncodeCorpus", "TrainModel", "ExportModel", "ImportCheckpoint")
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


@pytest.fixture(scope="module")
def whole(stack) -> dict[str, Job]:
    """The jobs of a run with room enough."""
    stages = all_stages(stack.folder.artifacts.as_uri(), "room")
    del stages["EvaluateModel"], stages["RegisterModel"]
    start(stack, "room", stages)
    return finish(stack, "room", "ImportCheckpoint")


def request_of(kind: str, stack: FaultStack, whole: dict[str, Job]) -> dict:
    """A stage's request, with the artifacts of the run that had room."""
    made = {name: job.outputs[0].uri for name, job in whole.items()}
    inputs = {
        "TrainTokenizer": {"corpus_uri": made["ExportCorpus"]},
        "EncodeCorpus": {"corpus_uri": made["ExportCorpus"], "tokenizer_uri": made["TrainTokenizer"]},
        "TrainModel": {"dataset_uri": made["EncodeCorpus"]},
        "ExportModel": {"checkpoint_uri": made["TrainModel"]},
    }
    return {**all_stages(stack.folder.artifacts.as_uri(), "room")[kind], **inputs.get(kind, {})}


def folders(job: Job) -> list[Path]:
    return [Path(urlsplit(output.uri).path) for output in job.outputs]


def check_whole(artifacts: Iterable[Path]) -> None:
    for folder in artifacts:
        manifest = Manifest.from_json((folder / "manifest.json").read_text(), str(folder))
        check_files(Artifact(folder.as_uri(), manifest, folder), verify=True)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", KINDS + (KINDS_OF_LONG_FORM if LONG else ()))
def test_a_job_that_finds_the_disk_full_fails_cleanly_and_is_continued(stack, whole, kind, part, capsys):
    run_id = f"full-{default_name(kind)}-{part}"
    folder = stack.folder.artifacts / f"{run_id}~{default_name(kind)}"
    needed = sum(path.stat().st_size for made in folders(whole[kind]) for path in made.rglob("*") if path.is_file())
    room = max(_PAGE, int(needed * part))
    with small_disk(folder, room):
        start(stack, run_id, {} if kind == FIRST else {kind: request_of(kind, stack, whole)})
        failed = wait_for_job(stack, run_id, kind, Job.STATE_FAILED)
        assert failed.error.code == code_pb2.RESOURCE_EXHAUSTED, failed.error.message
        left = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.endswith((".part", ".tmp"))]
        assert not left
        # Of several outputs, those before the last can be whole already.
        check_whole(path.parent for path in folder.glob("*/manifest.json"))
        check_whole(made for job in whole.values() for made in folders(job))
        give_room(folder)
        with stack.owner(kind).connect() as client:
            client.continue_run(run_id)
        jobs = finish(stack, run_id, kind)
        check(stack, run_id, jobs)
        assert digests({kind: jobs[kind]}) == digests({kind: whole[kind]})
    table = [
        ["stage", "room of needed bytes", "in phase", "error"],
        [kind, f"{room:,} of {needed:,}", failed.progress.phase, failed.error.message],
    ]
    print_report(capsys, table, "earlier artifacts whole, no half-written file, equal artifacts when continued")
