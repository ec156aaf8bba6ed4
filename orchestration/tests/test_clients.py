"""`gpt2 clients`: the commands that the documentation shows, on a separate file."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gpt2_common.clients import read_clients
from gpt2_orchestration.commands.clients import clients

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"


@pytest.fixture
def run(tmp_path):
    def run(*arguments: str, status: int = 0):
        result = CliRunner().invoke(clients, arguments, env={"GPT2_CLIENTS_FILE": str(tmp_path / "clients")})
        assert result.exit_code == status, result.output
        return result

    return run


def test_the_commands_of_the_documentation_make_change_and_revoke_tokens(run, tmp_path):
    blocks = re.findall(r"^ *```sh clients\n(.*?)```$", OPERATIONS.read_text(), re.DOTALL | re.MULTILINE)
    shown = [shlex.split(line, comments=True) for line in "".join(blocks).splitlines()]
    commands = [words[2:] for words in shown if words[:2] == ["gpt2", "clients"]]
    tokens = []
    for words in commands:
        before = json.loads(run("list", "--json").stdout) if tokens else []
        if "--token" in words:
            assert [item["name"] for item in before].count("ann") == 2
            words[-1] = before[0]["token"][:5]
        output = run(*words)
        if words[0] == "add":
            tokens.append(output.stdout.strip())
            assert re.fullmatch(r"gpt2_[\w-]{43}", tokens[-1])
            assert words[1] in output.stderr
    left = read_clients(tmp_path / "clients")
    assert [(client.name, client.may_act_for_others) for client in left] == [
        ("airflow", False),
        ("dashboard", True),
        ("registry", False),
    ]
    assert left.with_token(tokens[1]).name == "airflow"
    assert not any(token in (tmp_path / "clients").read_text() for token in tokens)


def test_errors_say_what_to_do(run, tmp_path):
    assert "`gpt2 clients add NAME` makes it" in run("list", status=2).stderr
    assert "a name has 1 to 200 printable characters" in run("add", "two words", status=2).stderr
    run("add", "ann")
    assert "has no client 'bob': `gpt2 clients list` shows" in run("remove", "bob", status=2).stderr
    (tmp_path / "clients").write_text("ann certificate\nann nonsense\n")
    assert "line 2: after the name" in run("add", "bob", status=2).stderr
