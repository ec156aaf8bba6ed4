"""Errors in user input, each with the path of its field, and their text when there are several."""

from collections.abc import Sequence
from dataclasses import dataclass

from gpt2_rules.forms import join_path, nearest_name

__all__ = ["FieldError", "format_field_errors", "join_path", "nearest_name"]


@dataclass(frozen=True, slots=True)
class FieldError:
    """An invalid field."""

    path: str
    """Path, such as `train_model.config.steps`; empty for the input as a whole."""
    problem: str
    """What is wrong, and what to do."""

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" if self.path else self.problem

    def under(self, path: str) -> "FieldError":
        """The same error, with a parent's path before its own."""
        return FieldError(join_path(path, self.path) if self.path else path, self.problem)


def format_field_errors(errors: Sequence[FieldError], subject: str = "") -> str:
    """One error on one line; several on a line each, after their number.

    Args:
        errors: At least one.
        subject: Their source, such as a file.
    """
    start = f"{subject}: " if subject else ""
    if len(errors) == 1:
        return f"{start}{errors[0]}"
    return "\n  ".join([f"{start}{len(errors)} errors", *map(str, errors)])
