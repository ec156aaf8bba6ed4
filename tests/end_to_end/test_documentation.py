"""What the pages under docs/ show is what happens: their commands are run, their links lead somewhere."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from .documentation import PAGES, ROOT, Reader, all_blocks, blocks, served

MARKS = {
    "run": "here",
    "text": "here and in test_how_tos.py",
    "train": "here",
    "use": "here",
    "serve": "here and in test_how_tos.py",
    "curl": "here and in test_how_tos.py",
    "model": "here",
    "grpcurl": "test_how_tos.py",
    "plan": "test_how_tos.py",
    "commands": "test_how_tos.py",
    "correct": "test_runs.py",
    "pipeline": "test_pipelines.py",
    "kubeflow": "test_kubeflow.py",
    "airflow": "test_airflow.py",
    "faults": "by `make test` and `make test-exhaustive`, in the short form; the files and names are checked here",
    "clients": "orchestration/tests/test_clients.py",
    "example": "orchestration/tests/test_examples.py checks requests, options and names",
    "setup": ".ci/run and orchestration/tests/stack",
    "compose": "orchestration/tests/deployment, and on an engine in tests/containers",
    **dict.fromkeys(
        (f"{verb} {what}" for verb in ("backup", "restore") for what in ("sqlite", "postgresql", "artifacts")),
        "tests/faults/test_backup.py",
    ),
    "cluster": "orchestration/tests/deployment, as no cluster is at hand",
}
"""What blocks of commands are marked with, and where those are run."""

LANGUAGE = "docs/your-language.md"
VOCABULARY = """
der die das eine ein Stadt Fluss Wald Haus Brücke Kirche Straße Mühle große kleine alte neue schöne weiße
liegt steht fließt führt zeigt gehört an auf unter über neben bei mit und oder aber denn seit heute früher Jahr"""


def article(number: int) -> str:
    """A text of German words, another for each number."""
    known = VOCABULARY.split()
    words = (known[(number * 31 + place * place + place // 7) % len(known)] for place in range(400))
    return " ".join(words).replace(" und ", ". ").capitalize() + "."


@pytest.fixture(scope="module")
def reader(stack, grpcurl) -> Reader:
    return Reader(stack, grpcurl)


@pytest.fixture(scope="module")
def language(reader) -> list[str]:
    """Follows the walk-through to a registered model. Returns what its steps print."""
    lines = (json.dumps({"id": str(number), "text": article(number)}) for number in range(60))
    (reader.folder / "articles.jsonl").write_text("\n".join(lines))
    [text] = blocks(LANGUAGE, "text")
    [train] = blocks(LANGUAGE, "train")
    quick = train.replace("--steps 1000", "--steps 6").replace("n_embd=256,n_ctx=256", "n_embd=32,n_ctx=64")
    quick = quick.replace("n_layer=4", "n_layer=1")
    assert "--steps 6" in quick
    return [reader.run(commands) for commands in (text, *blocks(LANGUAGE, "run"), quick)]


def test_each_block_of_commands_is_marked_with_where_it_is_run():
    marks = {(page.name, mark) for page in PAGES for mark, _ in all_blocks(page)}
    assert not {(page, mark) for page, mark in marks if mark not in MARKS}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_files_that_commands_of_compose_and_kubectl_name_are_there():
    shown = [commands for page in PAGES for mark, commands in all_blocks(page) if mark in ("compose", "cluster")]
    words = [word for commands in shown for line in commands.splitlines() for word in shlex.split(line, comments=True)]
    named = {word for word in words if word.endswith((".yml", ".example")) or word.startswith("orchestration/")}
    assert {"docker-compose.yml", "docker-compose.gpu.yml", ".env.example"} <= named
    assert not [name for name in named if not (ROOT / name).exists()]


def test_fault_tests_that_are_shown_are_there():
    [commands] = blocks("docs/operations.md", "faults")
    lines = [shlex.split(line, comments=True) for line in commands.splitlines()]
    for words in lines:
        [path] = [word for word in words if word.startswith("tests/")]
        collect = [sys.executable, *words[words.index("-m") :], "--collect-only", "-q"]
        result = subprocess.run(
            collect, cwd=ROOT, env=os.environ | {"GPT2_FAULTS": "long"}, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert f"{path.removesuffix('.py')}" in result.stdout


@pytest.mark.parametrize("page", ["docs/how-to/grpcurl.md", "docs/how-to/kubeflow.md", "docs/operations.md"])
def test_commands_of_a_page(reader, page):
    for commands in blocks(page, "run"):
        reader.run(commands)


def test_the_walk_through_makes_a_model_of_the_language(reader, language):
    assert "corpus\tfile://" in language[1]
    assert "dataset\tfile://" in language[2]
    [use] = blocks(LANGUAGE, "use")
    assert "validation_loss" in reader.run(use)
    [measure] = blocks("docs/training.md", "model")
    assert "perplexity" in reader.run(measure)


@pytest.mark.exhaustive  # as the model of test_how_tos.py is served
def test_the_walk_through_serves_the_model(reader, language):
    [serve] = blocks(LANGUAGE, "serve")
    [call] = blocks(LANGUAGE, "curl")
    with served(reader, serve) as address:
        [text] = json.loads(reader.run(call.replace("localhost:5001", address)))["predictions"]
    assert isinstance(text, str)
    assert "\n\n" not in text


def test_errors_of_the_troubleshooting_page_are_those_of_the_code():
    """What stands in a heading there, up to where values differ, stands in the code."""
    code = "".join(path.read_text() for folder in ("services", "orchestration") for path in _sources(folder))
    # A message goes over several lines of the code.
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    shown = re.findall(r"^### `(.*)`$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(shown) >= 15
    for message in shown:
        for part in message.split("…"):
            assert part.strip() in code, message


def _sources(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).glob("**/src/**/*.py"))


def test_all_packages_have_one_version():
    projects = [path for pattern in ("", "*/", "services/*/") for path in ROOT.glob(f"{pattern}pyproject.toml")]
    versions = {tomllib.loads(path.read_text())["project"]["version"] for path in projects}
    assert len(projects) == 8
    assert len(versions) == 1
