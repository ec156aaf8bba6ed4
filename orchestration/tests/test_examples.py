"""Examples in help, documentation and protos are requests that the services' messages take."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from google.protobuf import descriptor_pool, json_format, message_factory

from gpt2_catalogue import catalogue
from gpt2_orchestration.cli import app
from gpt2_orchestration.commands.command_groups import load_commands
from gpt2_orchestration.pipelines.specification import (
    load_specification,
    override,
    parse_overrides,
    parse_specification,
)
from gpt2_rules.forms import read_form

ROOT = Path(__file__).parents[2]
EXAMPLE = next((ROOT / "orchestration/examples").glob("scratch-files.yaml"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
STAGES = {
    "export": ("ExportCorpus", "ImportFiles"),
    "tokenize": ("EncodeCorpus",),
    "train": ("TrainModel",),
}
"""Whose request `--set` changes, by command; elsewhere it changes the file of a pipeline."""
_ASSIGNMENT = re.compile(r"[a-z_]+(?:\.[a-z_]+)*=[^\s`\\]*[^\s`\\.,;]")
_RPC = re.compile(r"gpt2\.\w+\.v1\.\w+/\w+")


def require_valid(command: str, assignment: str) -> None:
    """Raises where `--set` of a command does not take an assignment."""
    overrides = parse_overrides([assignment])
    if command in STAGES:
        for name in STAGES[command]:
            assert not read_form(override({}, overrides), catalogue().stages[name].request)[1], assignment
    else:
        load_specification(EXAMPLE, overrides)


def commands() -> Iterator[tuple[str, click.Command]]:
    """All commands by name, those of groups too."""
    waiting = list(load_commands(app).commands.items())
    while waiting:
        name, command = waiting.pop()
        yield name, command
        waiting += getattr(command, "commands", {}).items()


def set_options() -> Iterator[tuple[str, str]]:
    """Commands that have `--set`, and its help."""
    for name, command in commands():
        for option in command.params:
            if "--set" in option.opts:
                yield name, option.help


@pytest.mark.parametrize(("command", "text"), sorted(set_options()), ids=lambda value: value.split()[0])
def test_examples_of_set_in_help_are_fields_of_the_request(command, text):
    examples = _ASSIGNMENT.findall(text)
    assert examples, f"`gpt2 {command} --help` has no example of --set"
    for example in examples:
        require_valid(command, example)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_examples_of_set_in_pages_are_fields_of_the_request(page):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for found in re.finditer(r"gpt2 (?P<command>export|tokenize|train|run|compile)\b(?P<rest>[^\n]*)", text):
        for assignment in re.findall(r"--set[ =]([^\s`]+)", found["rest"]):
            require_valid(found["command"], assignment)
    for assignment in re.findall(r"`--set ([^`<]+)`", text):
        require_valid("run", assignment)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_pipelines_and_calls_in_pages_are_valid(page):
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"```yaml[^\n]*\n(.*?)```", text, re.DOTALL):
        content = yaml.safe_load(block)
        if isinstance(content, dict) and "train_model" in content:
            parse_specification(content)
    for call in re.findall(r"grpcurl[^\n]* -d '(.*?)'\s+\\?\s*localhost:\d+ ([\w./]+)", text, re.DOTALL):
        require_call(*call)


def require_call(body: str, name: str) -> None:
    """Raises where the JSON of a call, or a stage of the plan in it, does not fit."""
    # Variables of the shell stand outside of the single quotes.
    json_text = re.sub(r"'\$?\w*'|'\"?\$\w+\"?'|\$\w+", "x", body)
    assert _RPC.fullmatch(name), name
    method = descriptor_pool.Default().FindMethodByName(name.replace("/", "."))
    message = message_factory.GetMessageClass(method.input_type)
    request = json_format.Parse(json_text, message())
    for stage in request.job.plan.stages if hasattr(request, "job") else ():
        content = json_format.MessageToDict(stage.request)
        assert not read_form(content, catalogue().stages[stage.start].request)[1], stage.start


@pytest.mark.parametrize("path", sorted((ROOT / "orchestration/examples").glob("*.yaml")), ids=lambda path: path.name)
def test_example_pipelines_are_valid(path):
    load_specification(path)
