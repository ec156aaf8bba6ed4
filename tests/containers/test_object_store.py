"""Artifacts in an S3 store: the overlay and the profile of the how-to. Last, as it changes where artifacts are."""

import fsspec
import pytest

from .runs import finish, start_run

_FILES = ("--file", "docker-compose.yml", "--file", "docker-compose.s3.yml", "--profile", "s3")


@pytest.fixture
def stored(stack, documents, object_store_image):
    """The stack with its artifacts in the store; as before afterwards."""
    stack.compose(*_FILES, "up", "--detach", "--wait", "--wait-timeout", "600", seconds=660)
    yield stack
    stack.compose(*_FILES, "--profile", "airflow", "down", seconds=300)
    stack.up()


def test_a_run_has_all_its_artifacts_in_the_store(stored):
    start_run("in-the-store", steps=20)
    uris = [output.uri for job in finish("in-the-store").values() for output in job.outputs]
    folders = [uri for uri in uris if "://" in uri and not uri.startswith("models:")]
    assert folders
    assert {uri.split("/")[2] for uri in folders if uri.startswith("s3://")} == {"gpt2"}
    assert not [uri for uri in folders if not uri.startswith("s3://")]
    store = fsspec.filesystem(
        "s3", endpoint_url="http://localhost:9000", key="gpt2", secret=stored.secret("s3_password")
    )
    assert all(store.exists(f"{uri}/manifest.json") for uri in folders)
