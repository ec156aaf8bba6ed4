"""What can go wrong with a stack, as messages for users."""

from gpt2_orchestration.errors import UserError


class StackError(UserError):
    """The stack cannot start or stop; the message says why and what to do."""


class AlreadyRunning(StackError):
    """Another process runs a stack in the same folder."""


class NotRunning(StackError):
    """No stack runs in the folder."""
