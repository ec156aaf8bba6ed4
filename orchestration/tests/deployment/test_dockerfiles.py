"""The Dockerfiles copy what exists and is let into the build, and start what the services are."""

import fnmatch
import importlib.util
import json
import re

import pytest

from gpt2_orchestration.calls import DEFAULT_PORTS

DOCKERFILES = [*(f"services/{service}/Dockerfile" for service in DEFAULT_PORTS), "orchestration/Dockerfile"]


def instruction(text, name):
    return re.findall(rf"^(?:HEALTHCHECK .*)?{name} (.+)$", text, re.MULTILINE)


def copied(text):
    paths = [path for line in instruction(text, "COPY") if "--from" not in line for path in line.split()[:-1]]
    return {path.replace("${REQUIREMENTS}", name) for path in paths for name in ("trainer", "trainer-gpu")}


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_what_is_copied_exists_and_is_not_ignored(root, dockerfile):
    allowed = [line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    paths = copied((root / dockerfile).read_text())
    assert paths
    for path in paths:
        assert (root / path).exists(), path
        assert any(fnmatch.fnmatch(path, pattern) for pattern in allowed), path


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_an_image_is_locked_and_runs_without_root(root, dockerfile):
    text = (root / dockerfile).read_text()
    assert text.count("pip install") == 3
    assert text.count("--require-hashes") == 2
    assert instruction(text, "USER") == ["10001"]
    assert "HEALTHCHECK" in text


@pytest.mark.parametrize(("service", "port"), DEFAULT_PORTS.items())
def test_a_service_starts_on_its_port(root, service, port):
    text = (root / f"services/{service}/Dockerfile").read_text()
    assert instruction(text, "EXPOSE") == [str(port)]
    assert f"GPT2_LISTEN=0.0.0.0:{port} " in text
    check, start = (json.loads(command) for command in instruction(text, "CMD"))
    assert check[3] == f"localhost:{port}"
    for command in (check, start):
        assert importlib.util.find_spec(command[2]) is not None
    assert start == ["python", "-m", f"gpt2_{service}"]
    assert importlib.util.find_spec(f"gpt2_{service}.__main__") is not None


def test_the_image_for_gpus_has_what_each_backend_of_keras_needs_of_cuda(root):
    locked = (root / "requirements/trainer-gpu.txt").read_text()
    pinned = dict(re.findall(r"^([a-z0-9-]+)==([^ ]+) ", locked, re.MULTILINE))
    jax = re.search(r"^jax==([^ ]+) ; python_full_version < '3.12'", locked, re.MULTILINE)
    for plugin in ("jax-cuda12-plugin", "jax-cuda12-pjrt"):
        assert f"\n{plugin}=={jax[1]} ; python_full_version < '3.12'" in locked
    assert {"nvidia-cudnn-cu12", "nvidia-nccl-cu12", "nvidia-cuda-runtime-cu12"} <= set(pinned)
    assert "cuda12" not in (root / "requirements/trainer.txt").read_text()
