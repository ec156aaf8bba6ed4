"""Finds the text of a document by the path of its field: of a MongoDB document and of a JSON object alike."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2_exporter.corpus.record import EMPTY, IN_LIST, unusable_reason

DEFAULT_TEXT_FIELD = "text"


@dataclass(frozen=True, slots=True)
class FieldPath:
    """The path of a text, and what is done with lists on it.

    With a separator, a list stands for its members in their order, lists inside lists too. What the path finds in them
    is joined. Members that lack the field, and null or empty texts, add nothing; a value of another type makes the
    document unusable.
    """

    parts: tuple[str, ...]
    """Names of the fields, from the outermost one."""
    separator: str | None = None
    """What stands between the texts of a list; None where a list makes the document unusable."""

    @classmethod
    def of(cls, path: str, separator: str | None = None) -> "FieldPath":
        """The path in its form with dots, such as `body.text`."""
        return cls(tuple(path.split(".")), separator)

    def read(self, document: Any) -> tuple[str, str]:
        """The text and an empty reason, or an empty text and the reason why the document is unusable."""
        return self.read_value(follow(document, self.parts))

    def read_value(self, value: Any) -> tuple[str, str]:
        """As `read`, from the value that `follow` found."""
        if isinstance(value, _Lists):
            return ("", IN_LIST) if self.separator is None else self._join(value)
        reason = unusable_reason(value)
        return ("", reason) if reason else (value, "")

    def _join(self, found: "_Lists") -> tuple[str, str]:
        texts: list[str] = []
        reasons: set[str] = set()
        for value in found.values():
            reason = unusable_reason(value)
            if reason and value is not ... and value is not None and value != "":
                return "", reason
            if reason:
                reasons.add(reason)
            else:
                texts.append(value)
        if texts:
            return (self.separator or "").join(texts), ""
        return "", reasons.pop() if len(reasons) == 1 else EMPTY


@dataclass(frozen=True, slots=True)
class _Lists:
    """A list on a path, and the rest of the path."""

    members: list[Any]
    parts: Sequence[str]

    def values(self) -> Iterator[Any]:
        """What the rest of the path finds in each member."""
        for member in self.members:
            value = _Lists(member, self.parts) if isinstance(member, list) else follow(member, self.parts)
            if isinstance(value, _Lists):
                yield from value.values()
            else:
                yield value


def follow(value: Any, parts: Sequence[str]) -> Any:
    """The value at a path; `...` where there is none. One that `FieldPath.read_value` alone understands for a list."""
    for position, part in enumerate(parts):
        if isinstance(value, list):
            return _Lists(value, parts[position:])
        if not isinstance(value, dict) or part not in value:
            return ...
        value = value[part]
    return _Lists(value, ()) if isinstance(value, list) else value
