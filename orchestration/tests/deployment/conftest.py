"""The deployment files as they stand, and the settings classes that they are held against."""

import os
import re
from pathlib import Path

import pytest
import yaml
from go_programs import install_go_program

from gpt2_common.settings import PREFIX, load_settings
from gpt2_exporter.settings import ExporterSettings
from gpt2_registry.settings import RegistrySettings
from gpt2_tokenizer.settings import TokenizerSettings
from gpt2_trainer.settings import TrainerSettings

# `make test-cluster` sets it: Go builds Helm in minutes.
collect_ignore = [] if os.environ.get("GPT2_TEST_CLUSTER") else ["test_chart.py"]
ROOT = Path(__file__).resolve().parents[3]
SETTINGS = {
    "exporter": ExporterSettings,
    "tokenizer": TokenizerSettings,
    "trainer": TrainerSettings,
    "registry": RegistrySettings,
}


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def kustomize():
    return install_go_program("sigs.k8s.io/kustomize/kustomize/v5@v5.7.1")


@pytest.fixture(scope="session")
def compose():
    """The compose file, with the default of every variable."""
    text = re.sub(r"(?<!\$)\$\{\w+:-([^}]*)\}", r"\1", (ROOT / "docker-compose.yml").read_text())
    return yaml.safe_load(text)


@pytest.fixture
def known_to(monkeypatch):
    """Reads a container's variables as its service does at start; returns the settings, and fails on unknown names."""

    def read(service, variables):
        kind = SETTINGS[service]
        unknown = {name for name in variables if name.removeprefix(PREFIX).lower() not in kind.model_fields}
        assert not unknown
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, str(value))
            return load_settings(kind)

    return read
