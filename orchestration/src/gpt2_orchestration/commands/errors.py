"""Errors of commands: one line on standard error, and an exit status that `cli.py` documents."""

import os
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import typer

from gpt2_orchestration.client import ServiceError
from gpt2_orchestration.dashboard.settings import SettingsError
from gpt2_orchestration.specification import SpecificationError
from gpt2_orchestration.stack.errors import StackError
from gpt2_orchestration.stack.kafka_server import KafkaError

DEBUG_VARIABLE = "GPT2_DEBUG"
"""Set, it has errors say where in the code they come from."""

Arguments = ParamSpec("Arguments")


class UsageError(Exception):
    """The command line is wrong; the message says how it should be."""


def shows_errors(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Turns the errors that users can do something about into one line and an exit status."""

    @wraps(command)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (SettingsError, SpecificationError, UsageError) as error:
            raise typer.Exit(complain(error, 2)) from None
        except (ServiceError, StackError, KafkaError) as error:
            raise typer.Exit(complain(error, 1)) from None
        except KeyboardInterrupt:
            raise typer.Exit(complain("interrupted", 130)) from None
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:  # noqa: BLE001 - the end of the line: what nobody foresaw
            text = f"{type(error).__name__}: {error}. This is a fault of gpt2's own; `gpt2 --debug` shows where it is"
            raise typer.Exit(complain(text, 1)) from None

    return run


def complain(error: object, status: int) -> int:
    """Prints an error as one line. Returns the exit status."""
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exc()
    print(f"gpt2: {error}", file=sys.stderr)
    return status
