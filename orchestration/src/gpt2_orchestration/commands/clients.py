"""`gpt2 clients`: the file of named client tokens that the services accept (GPT2_CLIENTS_FILE).

It uses gpt2_common, which is installed with the services; other commands do not need it.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from gpt2_common.clients import ClientsFileError, add_client, read_clients, remove_client
from gpt2_orchestration.commands.command_groups import HelpGroup
from gpt2_orchestration.commands.errors import UsageError, shows_errors
from gpt2_orchestration.commands.output import JsonOption, print_json
from gpt2_orchestration.commands.tables import print_table

clients = typer.Typer(
    cls=HelpGroup, no_args_is_help=True, help="Client tokens, which identify callers to the services."
)

NameArgument = Annotated[str, typer.Argument(help="Name of the client: a person, a program, another service.")]
FileOption = Annotated[
    Path, typer.Option("--file", envvar="GPT2_CLIENTS_FILE", help="The clients file that the services read.")
]


@clients.command()
@shows_errors
def add(
    name: NameArgument,
    file: FileOption,
    may_act_for_others: Annotated[
        bool, typer.Option("--may-act-for-others", help="Allow it to name another actor in its requests.")
    ] = False,
) -> None:
    """Create a token for a client, print it once, and add its hash to the file. A client can have several."""
    with _shown_as_usage():
        token = add_client(file, name, may_act_for_others=may_act_for_others)
        count = sum(client.name == name and client.token_id != "" for client in read_clients(file))
    print(token)
    more = f"; it has {count} tokens now, and `gpt2 clients remove {name} --token ID` removes one" if count > 1 else ""
    print(f"gpt2: the token of {name} is not stored; set it as GPT2_CLIENT_TOKEN of that client{more}", file=sys.stderr)


@clients.command("list")
@shows_errors
def list_all(file: FileOption, json: JsonOption = False) -> None:
    """List the clients of the file."""
    with _shown_as_usage():
        found = list(read_clients(file))
    if json:
        entries = (
            {"name": item.name, "token": item.token_id, "may_act_for_others": item.may_act_for_others} for item in found
        )
        print_json(list(entries))
        return
    rows = (
        (item.name, item.token_id or "by certificate", "may act for others" if item.may_act_for_others else "")
        for item in found
    )
    print_table(("client", "token", "rights"), rows, str(file))


@clients.command()
@shows_errors
def remove(
    name: NameArgument,
    file: FileOption,
    token: Annotated[
        str | None,
        typer.Option("--token", metavar="ID", help="Only the token with this id, as `gpt2 clients list` shows it."),
    ] = None,
) -> None:
    """Remove a client; its calls are then refused."""
    with _shown_as_usage():
        removed = remove_client(file, name, token)
    print(f"removed {removed} {'line' if removed == 1 else 'lines'} of {name} from {file}")


@contextmanager
def _shown_as_usage() -> Iterator[None]:
    try:
        yield
    except ClientsFileError as error:
        raise UsageError(str(error)) from None
