"""The `gpt2` command as a process: what it prints, and how it ends."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

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


def test_a_wrong_specification_is_a_line_for_each_violation_and_status_2(tmp_path):
    (tmp_path / "news.yaml").write_text(SPECIFICATION)
    result = gpt2("run", "news.yaml", "--set", "train_model=null", folder=tmp_path)
    assert result.returncode == 2
    assert result.stderr == "gpt2: news.yaml: train_model: this section is missing; add it\n"
    result = gpt2("run", "news.yaml", "--set", "train_model=null", "--set", "register_model.labl=x", folder=tmp_path)
    assert result.returncode == 2
    assert result.stderr == (
        "gpt2: news.yaml: 2 errors\n"
        "  train_model: this section is missing; add it\n"
        "  register_model.labl: unknown field; did you mean label?\n"
    )


def test_services_that_are_away_are_one_line_and_status_1(tmp_path):
    (tmp_path / "news.yaml").write_text(SPECIFICATION)
    result = gpt2("run", "news.yaml", folder=tmp_path, GPT2_EXPORTER_ADDRESS="127.0.0.1:1")
    assert result.returncode == 1
    assert result.stderr == (
        "gpt2: the exporter at 127.0.0.1:1 does not answer: start it (`gpt2 stack up`), "
        "or set GPT2_EXPORTER_ADDRESS to its address\n"
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
        (("models", "show", "news/x"), "'news/x' is not a model version"),
        (("models", "label", "news", "staging"), "set either VERSION or --clear"),
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
        "stack",
        "exporter",
        "tokenizer",
        "trainer",
        "registry",
        "Kafka",
        "MLflow",
        "MongoDB",
        "proxy",
        "disk",
        "GPU",
    }
    assert findings["registry"]["ok"] is False
    assert "set GPT2_REGISTRY_ADDRESS" in findings["registry"]["fix"]
    assert "set GPT2_MONGODB_URI" in findings["MongoDB"]["fix"]
    assert "hidden" not in result.stdout


def test_file_comes_after_the_environment_and_before_the_default(tmp_path):
    (tmp_path / "gpt2.toml").write_text(
        'trainer_address = "file:1"\nregistry_address = "file:2"\nclient_token = "s3cret"'
    )
    result = gpt2("config", "--json", folder=tmp_path, GPT2_TRAINER_ADDRESS="environment:1")
    assert result.returncode == 0, result.stderr
    assert "s3cret" not in result.stdout
    shown = {row["name"]: (row["value"], row["source"]) for row in json.loads(result.stdout)}
    assert shown["GPT2_TRAINER_ADDRESS"] == ("environment:1", "environment")
    assert shown["GPT2_REGISTRY_ADDRESS"] == ("file:2", "gpt2.toml")
    assert shown["GPT2_EXPORTER_ADDRESS"] == ("localhost:50051", "default")
    assert shown["GPT2_CLIENT_TOKEN"] == ("(secret)", "gpt2.toml")
    assert "s3cret" not in gpt2("config", folder=tmp_path).stdout


def test_file_is_what_commands_go_by(tmp_path):
    (tmp_path / "other.toml").write_text('registry_address = "127.0.0.1:1"')
    result = gpt2("--config", "other.toml", "models", "list", folder=tmp_path)
    assert result.returncode == 1
    assert "the registry at 127.0.0.1:1 does not answer" in result.stderr
    assert gpt2("models", "list", folder=tmp_path, GPT2_CONFIG="other.toml").stderr == result.stderr
    (tmp_path / "home" / "gpt2").mkdir(parents=True)
    (tmp_path / "other.toml").rename(tmp_path / "home" / "gpt2" / "config.toml")
    assert gpt2("models", "list", folder=tmp_path, XDG_CONFIG_HOME=str(tmp_path / "home")).stderr == result.stderr


def test_file_sets_what_the_stack_gives_its_services(tmp_path):
    (tmp_path / "gpt2.toml").write_text('allowed_roots = ["/a", "/b"]\nmongodb_uri_archive = "mongodb://u:p4ss@h"\n')
    result = gpt2("config", "--json", folder=tmp_path)
    shown = {row["name"]: row["value"] for row in json.loads(result.stdout)}
    assert shown["GPT2_ALLOWED_ROOTS"] == "/a,/b"
    assert shown["GPT2_MONGODB_URI_ARCHIVE"] == "(secret)"
    assert "p4ss" not in result.stdout


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('trainer_adress = "x"', "unknown setting trainer_adress; did you mean trainer_address?"),
        ("trainer_address = {a = 1}", "trainer_address must be a string"),
        ("trainer_address = ", "cannot be read"),
        ("[client]\ntoken = 1", "unknown setting client"),
    ],
)
def test_a_wrong_file_is_one_line_and_status_2(tmp_path, content, said):
    (tmp_path / "gpt2.toml").write_text(content)
    result = gpt2("config", folder=tmp_path)
    assert result.returncode == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_chosen_file_that_is_not_there_is_said_to(tmp_path):
    result = gpt2("--config", "no.toml", "config", folder=tmp_path)
    assert result.returncode == 2
    assert "no.toml cannot be read" in result.stderr


def test_debug_shows_where_an_error_comes_from(tmp_path):
    result = gpt2("--debug", "models", "list", folder=tmp_path, GPT2_REGISTRY_ADDRESS="127.0.0.1:1")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "client.py" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("gpt2: the registry at 127.0.0.1:1 does not answer")


def test_an_output_without_room_is_one_line(tmp_path):
    with Path("/dev/full").open("w") as full:
        result = subprocess.run([GPT2, "config"], cwd=tmp_path, env={}, stdout=full, stderr=subprocess.PIPE, text=True)
    said = "gpt2: the output: No space left on device; choose a writable place with free space\n"
    assert (result.returncode, result.stderr) == (1, said)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("export",), "set DATABASE"),
        (("export", "news"), "set DATABASE"),
        (("export", "news", "articles", "--files", "x"), "set DATABASE"),
        (("export", "news", "articles", "--csv-delimiter", ";"), "--csv-delimiter: needs --files"),
        (("tokenize", "file:///c"), "choose one of --vocabulary-size"),
        (("tokenize", "file:///c", "--vocabulary-size", "300", "--import", "openai-gpt2"), "choose one of"),
        (("train", "file:///d"), "choose one of --size"),
        (("train", "file:///d", "--size", "n_layer=x"), "must be like 124M"),
        (("train", "file:///d", "--size", "124M", "--label", "staging"), "--label: needs --register"),
        (("train", "file:///d", "--size", "124M", "--tokenizer", "file:///t"), "--tokenizer: needs --openai"),
        (
            ("train", "file:///d", "--size", "124M", "--set", "config.stepz=1"),
            "train_model.config.stepz: unknown field; did you mean steps?",
        ),
        (("train", "file:///d", "--size", "n_layer=1,heads=2"), "model.heads: unknown field; did you mean n_head?"),
        (("train", "file:///d", "--size", "124M", "--set", "config=1"), "config: must be a mapping"),
        (("models", "evaluate", "news"), "set --dataset"),
    ],
)
def test_commands_say_how_they_are_to_be_called(tmp_path, command, said):
    result = gpt2(*command, folder=tmp_path)
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_completion_knows_the_commands(tmp_path):
    environment = {"_GPT2_COMPLETE": "complete_bash", "COMP_WORDS": "gpt2 models co", "COMP_CWORD": "2"}
    assert gpt2(folder=tmp_path, **environment).stdout.split() == ["compare"]


@pytest.mark.parametrize(
    ("command", "locale"),
    [
        (("generate", "file:///model", "--stop", b"\xe2\x82"), "C"),
        (("run", "news.yaml", "--set", b"name=caf\xe9"), "C.UTF-8"),
    ],
)
def test_an_argument_that_is_not_utf8_is_status_2(tmp_path, command, locale):
    result = gpt2(*command, folder=tmp_path, LC_ALL=locale)
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(r"gpt2: argument \d: the byte 0x[0-9a-f]{2} at character \d+ is not UTF-8; .*\n", result.stderr)


def test_a_variable_that_is_not_utf8_is_status_2(tmp_path):
    result = gpt2("jobs", "list", folder=tmp_path, GPT2_TRAINER_ADDRESS=b"\xff:1")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("gpt2: GPT2_TRAINER_ADDRESS: the byte 0xff at character 0 is not UTF-8; ")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        (
            "GPT2_CLIENT_TOKEN",
            "gpt2_x\n",
            "contains a character that gRPC metadata cannot carry, such as a line break; set it to ",
        ),
        ("GPT2_CLIENT_CA_FILE", "none.pem", "none.pem cannot be read (No such file or directory); set it to "),
    ],
)
def test_a_credential_that_cannot_be_used_is_one_line_and_status_2(tmp_path, variable, value, said):
    result = gpt2("runs", "list", folder=tmp_path, **{variable: value, "GPT2_TRAINER_ADDRESS": "127.0.0.1:1"})
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"gpt2: {variable}: {said}")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "locale"), [((), "C"), (("--prompts-file", "-"), "C.UTF-8"), (("--prompts-file", "prompts.txt"), "C")]
)
def test_prompts_that_are_not_utf8_are_status_2(tmp_path, options, locale):
    content = "gut\nschön".encode("latin-1")
    (tmp_path / "prompts.txt").write_bytes(content)
    command = [GPT2, "generate", "file:///model", *options]
    result = subprocess.run(
        command, cwd=tmp_path, env={"LC_ALL": locale}, input=content, capture_output=True, timeout=120
    )
    assert (result.returncode, result.stdout) == (2, b"")
    error = result.stderr.decode()
    assert error.count("\n") == 1
    assert "the byte 0xf6 at byte 7 (line 2) is not UTF-8; convert it to UTF-8" in error
    assert error.startswith(
        "gpt2: standard input" if "prompts.txt" not in options else "gpt2: --prompts-file prompts.txt"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("x", "--seed", str(2**63)), "--seed: must be from"),
        (("x", "--no-repeat-ngram-size", str(2**31)), "--no-repeat-ngram-size: must be from"),
        (("x", "--samples", "0"), "--samples: must not be 0; leave it out for the default"),
        (("x", "--prompts-file", "-"), "--prompts-file: cannot be combined with prompts"),
        (("--prompts-file", "absent"), "--prompts-file absent: No such file"),
    ],
)
def test_options_of_generate_that_no_request_holds_are_status_2(tmp_path, options, message):
    result = gpt2("generate", "file:///model", *options, folder=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"gpt2: {message}")


def test_an_output_without_unicode_shows_escapes(tmp_path):
    environment = {"PYTHONIOENCODING": "ascii", "GPT2_TRAINER_ADDRESS": "ünicode:1"}
    result = gpt2("config", folder=tmp_path, **environment)
    assert result.returncode == 0
    assert "\\xfcnicode:1" in result.stdout
    assert "\\u00fcnicode:1" in gpt2("config", "--json", folder=tmp_path, **environment).stdout
