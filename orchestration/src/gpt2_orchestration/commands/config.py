"""`gpt2 config`: the configuration of the commands, and the source of each value."""

import typer

from gpt2_orchestration.commands.configuration import VARIABLES, Configuration
from gpt2_orchestration.commands.errors import shows_errors
from gpt2_orchestration.commands.output import JsonOption, print_json
from gpt2_orchestration.commands.tables import print_table


@shows_errors
def config(context: typer.Context, json: JsonOption = False) -> None:
    """Show the configuration, and where each value comes from."""
    configuration: Configuration = context.find_root().obj
    shown = []
    for variable in (*VARIABLES, *configuration.further()):
        value, source = configuration.value(variable)
        shown.append(
            (variable.name, "(secret)" if variable.secret and source != "default" else value, source, variable.meaning)
        )
    if json:
        print_json([dict(zip(("name", "value", "source", "meaning"), row, strict=True)) for row in shown])
    else:
        file = str(configuration.file or "none; gpt2.toml in this folder is read if it exists")
        print_table(("variable", "value", "from", "meaning"), shown, f"file: {file}")
