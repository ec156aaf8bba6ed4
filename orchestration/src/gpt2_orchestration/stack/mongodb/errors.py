"""Errors that a client sees, with MongoDB's codes."""

from typing import Any

BAD_VALUE = 2
NAMESPACE_NOT_FOUND = 26
CURSOR_NOT_FOUND = 43
NAMESPACE_EXISTS = 48
COMMAND_NOT_FOUND = 59
IMMUTABLE_FIELD = 66
INVALID_NAMESPACE = 73
COMMAND_NOT_SUPPORTED = 115
DOCUMENT_TOO_LARGE = 10334
DUPLICATE_KEY = 11000


class CommandError(Exception):
    """A command that fails.

    Args:
        message: What is wrong.
        code: MongoDB's code of the error.
        details: Further fields of the answer.
    """

    def __init__(self, message: str, code: int = BAD_VALUE, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.details = details


def unsupported(what: str) -> CommandError:
    """The error for what MongoDB has and this server lacks."""
    return CommandError(
        f"the embedded MongoDB stand-in does not support {what}: use MongoDB itself, or do without it",
        COMMAND_NOT_SUPPORTED,
    )
