"""The Dockerfile copies what exists and is let into the build, and starts what the services are."""

import fnmatch
import importlib.util
import json
import re
import tomllib
from pathlib import PurePosixPath

import pytest
import yaml

from gpt2_orchestration.client.addresses import DEFAULT_PORTS


@pytest.fixture(scope="module")
def dockerfile(root):
    return (root / "Dockerfile").read_text()


def stages(text):
    """The text of each stage, by name."""
    parts = re.split(r"^FROM (?:\S+) AS (\S+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


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


def test_what_is_copied_exists_and_is_not_ignored(root, dockerfile):
    patterns = (root / ".dockerignore").read_text().splitlines()
    paths = copied(dockerfile)
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


def test_images_are_locked_and_run_without_root(dockerfile):
    installs = [line for line in dockerfile.splitlines() if "pip install" in line or "uv pip sync" in line]
    assert len(installs) == 4
    assert sum("--require-hashes" in line for line in installs) == 2
    assert dockerfile.count("--no-deps") == 2
    assert instruction(stages(dockerfile)["base"], "USER") == ["10001"]
    for target in ("service", "orchestration"):
        assert f"FROM base AS {target}\n" in dockerfile
        assert "HEALTHCHECK" in stages(dockerfile)[target]
        assert instruction(stages(dockerfile)[target], "USER") == []


def test_images_carry_the_version_of_the_packages(root, dockerfile):
    [version] = re.findall(r'org\.opencontainers\.image\.version="(.+)"', dockerfile)
    assert version == tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.parametrize(("service", "port"), DEFAULT_PORTS.items())
def test_a_service_starts_on_its_port(root, dockerfile, service, port):
    text = stages(dockerfile)["service"]
    compose_file = yaml.safe_load((root / "docker-compose.yml").read_text())
    compose = compose_file["services"][service]
    arguments = compose["build"]["args"]
    assert compose["build"]["target"] == "service"
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
