"""The Dockerfiles copy what exists and is let into the build, and start what the services are."""

import fnmatch
import importlib.util
import json
import re
from pathlib import PurePosixPath

import pytest
import yaml

from gpt2_orchestration.client.addresses import DEFAULT_PORTS

SERVICES = "services/Dockerfile"
DOCKERFILES = [SERVICES, "orchestration/Dockerfile"]


def instruction(text, name):
    return re.findall(rf"^(?:HEALTHCHECK .*)?{name} (.+)$", text, re.MULTILINE)


def copied(text):
    paths = [path for line in instruction(text, "COPY") if "--from" not in line for path in line.split()[:-1]]
    return {
        path.replace("${SERVICE}", service).replace("${REQUIREMENTS}", requirements)
        for path in paths
        for service in DEFAULT_PORTS
        for requirements in (*DEFAULT_PORTS, "trainer-gpu", "airflow", "dashboard")
    }


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_what_is_copied_exists_and_is_not_ignored(root, dockerfile):
    patterns = (root / ".dockerignore").read_text().splitlines()
    paths = copied((root / dockerfile).read_text())
    assert paths
    for path in paths:
        assert (root / path).exists(), path
        assert not is_ignored(path, patterns), path


def is_ignored(path, patterns):
    """Whether the last pattern that a path or one of its folders matches leaves it out."""
    ignored = False
    names = [path, *(str(parent) for parent in PurePosixPath(path).parents)]
    for pattern in patterns:
        if any(name != "." and fnmatch.fnmatch(name, pattern.removeprefix("!")) for name in names):
            ignored = not pattern.startswith("!")
    return ignored


def test_what_is_not_copied_is_ignored(root):
    patterns = (root / ".dockerignore").read_text().splitlines()
    for path in (".env", ".git/HEAD", "tests/end_to_end/stack.py", "services/trainer/tests/x.py", ".venv/bin/python"):
        assert is_ignored(path, patterns), path


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_an_image_is_locked_and_runs_without_root(root, dockerfile):
    text = (root / dockerfile).read_text()
    assert (text.count("pip install"), text.count("uv pip sync")) == (2, 1)
    assert text.count("--require-hashes") == 2
    assert instruction(text, "USER") == ["10001"]
    assert "HEALTHCHECK" in text


@pytest.mark.parametrize(("service", "port"), DEFAULT_PORTS.items())
def test_a_service_starts_on_its_port(root, service, port):
    text = (root / SERVICES).read_text()
    compose_file = yaml.safe_load((root / "docker-compose.yml").read_text())
    compose = compose_file["services"][service]
    arguments = compose["build"]["args"]
    assert compose["build"]["dockerfile"] == SERVICES
    assert (arguments["SERVICE"], arguments["PORT"]) == (service, str(port))
    assert instruction(text, "EXPOSE") == ["$PORT"]
    [environment] = [line for line in instruction(text, "ENV") if "GPT2_LISTEN=0.0.0.0:$PORT " in line]
    assert "GPT2_SERVICE=$SERVICE " in environment
    check, start = (json.loads(command) for command in re.findall(r"^ *CMD (.+)$", text, re.MULTILINE))
    assert check[-1] == "/opt/packages/gpt2_common/healthcheck.py"
    assert check == compose_file["x-service"]["healthcheck"]["test"][1:]
    assert importlib.util.find_spec("gpt2_common.healthcheck") is not None
    assert start == ["sh", "-c", "exec python -m gpt2_$GPT2_SERVICE"]
    assert importlib.util.find_spec(f"gpt2_{service}.__main__") is not None


def test_the_image_for_gpus_has_what_each_backend_of_keras_needs_of_cuda(root):
    locked = (root / "requirements/trainer-gpu.txt").read_text()
    pinned = dict(re.findall(r"^([a-z0-9-]+)==([^ ]+) ", locked, re.MULTILINE))
    jax = re.search(r"^jax==([^ ]+) ; python_full_version < '3.12'", locked, re.MULTILINE)
    for plugin in ("jax-cuda12-plugin", "jax-cuda12-pjrt"):
        assert f"\n{plugin}=={jax[1]} ; python_full_version < '3.12'" in locked
    assert {"nvidia-cudnn-cu12", "nvidia-nccl-cu12", "nvidia-cuda-runtime-cu12"} <= set(pinned)
    assert "cuda12" not in (root / "requirements/trainer.txt").read_text()
