"""Builds the text of a document: from the field at a path, and with a title by a template."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_common.errors import InvalidRequest
from gpt2_exporter.corpus.field_path import DEFAULT_TEXT_FIELD, FieldPath, follow

DEFAULT_TEMPLATE = "{title}\n\n{text}"
_TEMPLATE_FIELD = "source.template"
_TEMPLATE_PART = re.compile(r"\{\{|\}\}|\{title\}|\{text\}|[{}]")


@dataclass(frozen=True, slots=True)
class TextRule:
    """How the text of a document is built."""

    path: str
    """Path of the text, with dots."""
    field: FieldPath
    """The same, with the rule for lists on it."""
    title_path: str
    """Path of the title; empty for none."""
    parts: tuple[str, ...]
    """The template: `{title}`, `{text}` and the literal parts."""

    @classmethod
    def of(cls, source: pb.MongoSource) -> "TextRule":
        """Returns the rule of a source. Raises InvalidRequest when its template is invalid."""
        if source.template and not source.title_field:
            raise InvalidRequest([(_TEMPLATE_FIELD, "needs source.title_field, the path of the title")])
        parts = parse_template(source.template or DEFAULT_TEMPLATE)
        path = source.text_field or DEFAULT_TEXT_FIELD
        separator = source.list_separator if source.HasField("list_separator") else None
        return cls(path, FieldPath.of(path, separator), source.title_field, parts)

    @property
    def paths(self) -> list[str]:
        """Paths of the fields to read."""
        return [self.path, self.title_path] if self.title_path else [self.path]

    @property
    def plain_field(self) -> str:
        """The top-level field that is the text; empty where a path, a title or `_id` makes up the text."""
        return "" if self.title_path or "." in self.path or self.path == "_id" else self.path

    def read(self, document: dict[str, Any]) -> tuple[str, str]:
        """Returns the text and an empty reason, or an empty text and the reason why the document is unusable."""
        value, reason = self.field.read_value(_value_at(document, self.path, self.field.parts))
        if reason or not self.title_path:
            return value, reason
        title = _value_at(document, self.title_path, self.title_path.split("."))
        if not isinstance(title, str) or not title:
            return value, ""
        values = {"{title}": title, "{text}": value}
        return "".join(values.get(part, part) for part in self.parts), ""


def parse_template(template: str) -> tuple[str, ...]:
    """Splits a template into `{title}`, `{text}` and literal parts.

    Raises:
        InvalidRequest: It does not contain each of them once, or has another brace.
    """
    parts: list[str] = []
    begin = 0
    for match in _TEMPLATE_PART.finditer(template):
        parts.append(template[begin : match.start()])
        begin = match.end()
        if match.group() in ("{", "}"):
            raise InvalidRequest([(_TEMPLATE_FIELD, f"has a lone {match.group()!r}: write it twice for a brace")])
        parts.append(match.group()[0] if match.group() in ("{{", "}}") else match.group())
    if parts.count("{title}") != 1 or parts.count("{text}") != 1:
        raise InvalidRequest([(_TEMPLATE_FIELD, "must contain {title} once and {text} once")])
    return tuple(part for part in [*parts, template[begin:]] if part)


def _value_at(document: dict[str, Any], path: str, parts: Sequence[str]) -> Any:
    """Returns the value at a path, as `follow` does."""
    # Some servers answer a projection with dots with one field of the whole dotted name.
    return follow(document, (path,) if path in document else parts)
