"""Modules that the `gpt2` command imports, and descriptions in its table of commands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2_orchestration.cli import Commands, app
from gpt2_orchestration.commands.command_groups import load_commands
from gpt2_orchestration.commands.stack import StackCommands

_OF_HELP = {"annotated_doc", "gpt2_orchestration", "shellingham", "typer"}
_OF_OPTIONS = {"annotated_types", "pydantic", "pydantic_core", "typing_extensions", "typing_inspection"}
"""Modules that Typer parses options with."""
_OF_CLIENT = {
    "cython_runtime",
    "google",
    "gpt2",
    "gpt2_catalogue",
    "gpt2_contracts",
    "gpt2_proxies",
    "gpt2_rules",
    "grpc",
    "grpc_health",
    "grpc_reflection",
    "grpc_tools",
}
"""gRPC imports its own optional packages where they are installed."""
_OF_TABLES = {"rich"}
_SHOW_MODULES = """
import sys
before = set(sys.modules)
from gpt2_orchestration.cli import main
sys.argv[0] = "gpt2"
try:
    main()
finally:
    names = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
    # What begins with `_` comes with another module.
    print("MODULES", *(name for name in names if not name.startswith("_")), file=sys.stderr)
"""


def imported(folder: Path, *arguments: str, **environment: str) -> tuple[int, set[str]]:
    """Exit status of a command, and the top-level modules that it imported besides the standard library."""
    command = [sys.executable, "-c", _SHOW_MODULES, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, set(done.stderr.rpartition("MODULES ")[2].split())


@pytest.mark.parametrize(
    ("arguments", "status", "environment", "modules"),
    [
        (("--help",), 0, {}, _OF_HELP),
        (("no-command",), 2, {}, _OF_HELP | _OF_OPTIONS),
        (
            (),
            0,
            {"_GPT2_COMPLETE": "complete_bash", "COMP_WORDS": "gpt2 mo", "COMP_CWORD": "1"},
            _OF_HELP | _OF_OPTIONS,
        ),
    ],
    ids=["help", "unknown", "completion"],
)
@pytest.mark.process
def test_help_completion_and_usage_errors_import_no_command(tmp_path, arguments, status, environment, modules):
    ended, found = imported(tmp_path, *arguments, **environment)
    assert ended == status
    assert "typer" in found
    assert found - modules == set()


def test_descriptions_in_the_table_are_those_of_the_commands():
    found = load_commands(app).commands
    for entries, commands in ((Commands.entries, found), (StackCommands.entries, found["stack"].commands)):
        said = {entry.name: entry.help for entry in entries}
        assert said == {name: command.get_short_help_str(1000) for name, command in commands.items()}


@pytest.mark.parametrize(
    ("command", "modules"),
    [
        (("jobs", "list"), _OF_TABLES),
        (("runs", "list"), _OF_TABLES),
        (("models", "list"), _OF_TABLES),
        (("stack", "status"), _OF_TABLES | {"psutil"}),
        (("generate", "file:///model", "prompt"), set()),
    ],
    ids=["jobs", "runs", "models", "stack", "generate"],
)
@pytest.mark.process
def test_commands_that_call_services_import_only_the_client(tmp_path, command, modules):
    services = ("EXPORTER", "TOKENIZER", "TRAINER", "REGISTRY")
    status, found = imported(tmp_path, *command, **{f"GPT2_{service}_ADDRESS": "127.0.0.1:1" for service in services})
    assert status == 1
    assert "grpc" in found
    assert found - (_OF_HELP | _OF_OPTIONS | _OF_CLIENT | modules) == set()


@pytest.mark.parametrize(("command", "missing"), [(("clients", "list"), "gpt2_common"), (("demo",), "pymongo")])
@pytest.mark.process
def test_a_command_names_the_packages_that_it_misses(tmp_path, command, missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from gpt2_orchestration.cli import main; main()"
    arguments = [sys.executable, "-c", code, *command]
    done = subprocess.run(arguments, cwd=tmp_path, env={}, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"gpt2: .*{command[0]} needs {missing}.*, which is not installed: install .*\n", done.stderr)
