"""Errors that a user can fix: the message says what is wrong and what to do.

The `gpt2` command reports them without importing the modules that raise them.
"""

from typing import ClassVar


class UserError(Exception):
    """A dependency of the command failed: a service, a job, a process."""

    exit_status: ClassVar[int] = 1
    """Exit status of a command that raises it."""


class InputError(UserError):
    """The user's input is invalid: the command line, a file or an environment variable."""

    exit_status = 2
