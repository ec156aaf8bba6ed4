"""Artifacts and records as version 0.1.0 wrote them before the contracts had a package: they stay readable."""

import json
from pathlib import Path
from typing import Any

import pytest

from gpt2_common.artifacts import Artifact, Manifest

DATA = Path(__file__).with_name("data")


@pytest.fixture
def old_artifact():
    """Opens one of the stored artifacts, by kind."""

    def open_artifact(kind: str) -> Artifact:
        folder = DATA / kind
        text = (folder / "manifest.json").read_text(encoding="utf-8")
        return Artifact(f"file:///old/{kind}", Manifest.from_json(text, kind), folder)

    return open_artifact


@pytest.fixture
def old_text():
    """Text of a stored file."""
    return lambda path: (DATA / path).read_text(encoding="utf-8")


@pytest.fixture
def old_records() -> Any:
    """A stored event and its dead letter: headers and value."""
    return json.loads((DATA / "events.json").read_text(encoding="utf-8"))


@pytest.fixture
def old_registry() -> Any:
    """Tags, parameters and metrics of a stored version in MLflow."""
    return json.loads((DATA / "registry.json").read_text(encoding="utf-8"))
