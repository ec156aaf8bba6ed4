"""Facts of several versions as lines: a name, and its value in each."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

Value = TypeVar("Value")


def side_by_side(columns: Sequence[Mapping[str, Value]], absent: Value) -> list[tuple[str, Sequence[Value]]]:
    """Lines by name, in the order of names.

    Args:
        columns: What each version has, by name.
        absent: Stands where one lacks it.
    """
    names = sorted({name for column in columns for name in column})
    return [(name, [column.get(name, absent) for column in columns]) for name in names]
