"""Which commit an artifact says that it was made by."""

import subprocess
import sys
from pathlib import Path

import pytest

import gpt2_common
from gpt2_common.artifacts import Manifest
from gpt2_common.jobs.context import Interruption, JobContext, JobIdentity
from gpt2_common.revision import checkout_revision
from gpt2_common.settings import ServiceSettings

pytestmark = pytest.mark.process


def test_a_checkout_is_asked_for_its_commit():
    root = Path(__file__).parents[3]
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    # Without git, or in a copy without its history, there is nothing to know.
    assert checkout_revision().removesuffix("-dirty") == head


def test_code_that_no_checkout_tracks_has_no_commit(tmp_path):
    package = tmp_path / "gpt2_common"
    package.mkdir()
    source = Path(gpt2_common.__file__).parent
    for name in ("__init__.py", "revision.py"):
        (package / name).write_text((source / name).read_text())
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    script = "from gpt2_common.revision import checkout_revision; print(repr(checkout_revision()))"
    answer = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "''"


def test_a_manifest_says_what_made_it(tmp_path):
    settings = ServiceSettings(artifact_root=str(tmp_path), git_revision="abc123")
    identity = JobIdentity(service="any", job_id="a/b", run_id="a", request_digest="d", attempt=1)
    context = JobContext(identity, settings, lambda _: None, Interruption())
    with context.create("thing", "thing") as writer:
        (writer.folder / "file").write_text("content")
        made = writer.commit()
    producer = Manifest.from_json((made.folder / "manifest.json").read_text(), made.uri).producer
    assert producer["git_revision"] == "abc123"
    assert producer["python"] == sys.version.split()[0]
    assert producer["platform"]
