"""Error handling of commands: one line on standard error, and an exit status (see `cli.py`)."""

import errno
import os
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import typer

from gpt2_orchestration.errors import InputError, UserError

DEBUG_VARIABLE = "GPT2_DEBUG"
"""If set, errors show a traceback."""

_NOT_WRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT})

Arguments = ParamSpec("Arguments")


class UsageError(InputError):
    """The command line is invalid."""


def shows_errors(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Decorates a command: errors become one line on standard error and an exit status."""

    @wraps(command)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except UserError as error:
            raise typer.Exit(print_error(error, error.exit_status)) from None
        except KeyboardInterrupt:
            raise typer.Exit(print_error("interrupted", 130)) from None
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:  # noqa: BLE001 - the outermost handler: bugs
            if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
                place = error.filename or "the output"
                text = f"{place}: {error.strerror}; choose a writable place with free space"
                raise typer.Exit(print_error(text, 1)) from None
            advice = "This is an internal error (bug): rerun with `gpt2 --debug` and report it"
            text = f"{type(error).__name__}: {error}. {advice}"
            raise typer.Exit(print_error(text, 1)) from None

    return run


def print_error(error: object, status: int) -> int:
    """Prints an error as one line. Returns the exit status."""
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exc()
    print(f"gpt2: {error}", file=sys.stderr)
    return status
