"""The `gpt2` command as a process: what it prints, and how it ends."""

import json
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


@pytest.mark.parametrize(
    "command",
    [
        ("models", "list"),
        ("models", "show", "news@staging", "--json"),
        ("generate", "news", "prompt"),
    ],
)
def test_a_registry_that_is_away_is_one_sentence(tmp_path, command):
    result = gpt2(*command, folder=tmp_path, GPT2_REGISTRY_ADDRESS="127.0.0.1:1")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("gpt2: the registry at 127.0.0.1:1 does not answer: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("models", "show", "news/x"), "'news/x' names no version"),
        (("models", "label", "news", "staging"), "name either the VERSION that gets the label, or --clear"),
        (("generate", ""), "MODEL is empty"),
        (("jobs", "list", "--state", "lost"), "--state"),
    ],
)
def test_a_wrong_command_line_is_status_2(tmp_path, command, message):
    result = gpt2(*command, folder=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_doctor_says_what_to_fix(tmp_path):
    variables = {f"GPT2_{name}_ADDRESS": "127.0.0.1:1" for name in ("EXPORTER", "TOKENIZER", "TRAINER", "REGISTRY")}
    variables["GPT2_MONGODB_URI"] = "mongodb://ann:hidden@127.0.0.1:1/?tls=true"
    result = gpt2("doctor", "--json", folder=tmp_path, **variables)
    assert result.returncode == 1
    findings = {item["what"]: item for item in json.loads(result.stdout)}
    assert set(findings) == {
        "exporter",
        "tokenizer",
        "trainer",
        "registry",
        "Kafka",
        "MLflow",
        "MongoDB",
        "disk",
        "GPU",
    }
    assert findings["registry"]["ok"] is False
    assert "correct GPT2_REGISTRY_ADDRESS" in findings["registry"]["fix"]
    assert "correct GPT2_MONGODB_URI" in findings["MongoDB"]["fix"]
    assert "hidden" not in result.stdout
