"""The `gpt2` command as a process: what it prints, and how it ends."""

import subprocess
import sys
from pathlib import Path

import pytest

GPT2 = Path(sys.executable).with_name("gpt2")

SPECIFICATION = """
name: news
import_files: {uris: [file:///data/text]}
train_tokenizer: {}
train_model: {model_size: 124M, config: {steps: 1}}
register_model: {model_name: news}
"""


def gpt2(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [GPT2, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_wrong_specification_is_one_line_and_status_2(tmp_path):
    (tmp_path / "news.yaml").write_text("name: news")
    result = gpt2("run", "news.yaml", folder=tmp_path)
    assert result.returncode == 2
    assert result.stderr == "gpt2: news.yaml: section 'train_model' is missing\n"


def test_services_that_are_away_are_one_line_and_status_1(tmp_path):
    (tmp_path / "news.yaml").write_text(SPECIFICATION)
    result = gpt2("run", "news.yaml", folder=tmp_path, GPT2_EXPORTER_ADDRESS="127.0.0.1:1")
    assert result.returncode == 1
    assert result.stderr == (
        "gpt2: the exporter at 127.0.0.1:1 does not answer: start it (`gpt2 stack up`), "
        "or correct GPT2_EXPORTER_ADDRESS\n"
    )
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["down", "status"])
def test_a_stack_that_does_not_run_is_said_to(tmp_path, command):
    result = gpt2("stack", command, folder=tmp_path)
    assert result.returncode == 1
    assert "no stack runs in" in result.stderr
    assert "Traceback" not in result.stderr
