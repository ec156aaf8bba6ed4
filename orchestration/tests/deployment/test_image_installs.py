"""The install commands of the Dockerfile, run as they stand where nothing but what is copied exists.

Outside the checkout there is no workspace, and with it none of its overrides: what resolves here may not resolve there.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

SERVICE_IMAGES = [(name, name) for name in ("exporter", "tokenizer", "trainer", "registry")] + [
    ("trainer", "trainer-gpu")
]
IMAGES = [
    *(("service-code", {"SERVICE": service, "REQUIREMENTS": lock}) for service, lock in SERVICE_IMAGES),
    *(("orchestration-code", {"REQUIREMENTS": lock}) for lock in ("airflow", "dashboard")),
]


def instructions(text, stage):
    """Name and arguments of each instruction of the dependencies and of a stage on them, with its lines joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    parts = re.split(r"^FROM \S+ AS (\S+)$", joined, flags=re.MULTILINE)
    stages = dict(zip(parts[1::2], parts[2::2], strict=True))
    lines = (stages["dependencies"] + stages[stage]).splitlines()
    return [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]


def copy(root, folder, arguments):
    *sources, target = arguments.split()
    for source in sources:
        into = folder / target.removeprefix("/build/")
        if (root / source).is_dir():
            shutil.copytree(root / source, into, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            into.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / source, into)


@pytest.mark.parametrize(("stage", "arguments"), IMAGES, ids=str)
def test_what_an_image_installs_resolves_outside_the_checkout(root, tmp_path, stage, arguments):
    checked = 0
    environment = tmp_path / "environment"
    for name, value in instructions((root / "Dockerfile").read_text(), stage):
        for argument, given in arguments.items():
            value = value.replace(f"${{{argument}}}", given)
        if name == "COPY" and "--from" not in value:
            copy(root, tmp_path / "build", value)
        for command in value.split(" && ") if name == "RUN" else ():
            if command.startswith("uv "):
                checked += run(command, tmp_path / "build", environment)
    assert checked == 3


def run(command, build, environment):
    """Runs one command of uv, with the paths of the image replaced; what would install only says what it would do."""
    command = command.replace("/build/", f"{build}/").replace("/opt/", f"{environment}/").replace('"', "")
    words = [word for word in command.split()[1:] if word != "--no-cache"]
    if words[0] == "pip":
        words.insert(2, "--dry-run")
    uv = shutil.which("uv") or str(Path(sys.prefix).parent / ".tools/bin/uv")
    done = subprocess.run([uv, *words], cwd=build, env=dict(os.environ), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return 1
