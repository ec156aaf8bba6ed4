"""Volumes that an earlier version has filled, as this one finds them: nothing is lost, and runs continue."""

import subprocess

import pytest

from .project import ROOT, Project, follow_how_to
from .runs import digests, finish, insert_documents, jobs_of, start_run, wait_for_job

_NAME = "gpt2-test-upgrade"
# The last commit before this test was written: the version that is upgraded from until there is a release.
_FIRST_VERSION = "e6435ecd46"


def _earlier_version() -> str:
    """The last release before this commit, or the first version."""
    command = ["git", "describe", "--tags", "--abbrev=0", "--match", "v*", "HEAD~1"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else _FIRST_VERSION


def _copy_earlier_version(project: Project) -> None:
    archive = subprocess.run(["git", "archive", _earlier_version()], cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "--extract", "--directory", project.folder], check=True, input=archive.stdout)


@pytest.fixture
def earlier(project, engine_environment, tmp_path_factory):
    """The earlier version's stack, in place of this version's."""
    project.compose("--profile", "airflow", "down", seconds=300)
    made = follow_how_to(_NAME, engine_environment, tmp_path_factory.mktemp("earlier"), _copy_earlier_version)
    made.compose("down", "--volumes", "--remove-orphans")
    made.up()
    yield made
    made.compose("--profile", "airflow", "down", "--volumes", "--remove-orphans", seconds=300)


def test_an_upgrade_loses_nothing_and_continues_what_was_running(earlier, engine_environment, tmp_path_factory, tell):
    insert_documents(earlier.secret("mongodb_password"))
    start_run("before-upgrade", steps=20)
    before = digests(finish("before-upgrade"))
    start_run("through-upgrade", steps=400)
    wait_for_job("through-upgrade", "TrainModel")
    earlier.compose("down", seconds=600)

    upgraded = follow_how_to(_NAME, engine_environment, tmp_path_factory.mktemp("upgraded"), Project.copy_checkout)
    tell(f"{_earlier_version()}, upgraded: healthy after {upgraded.up():.0f} s")
    assert digests(jobs_of("before-upgrade")) == before
    finish("before-upgrade")
    finish("through-upgrade")
    start_run("after-upgrade", steps=20)
    finish("after-upgrade")
