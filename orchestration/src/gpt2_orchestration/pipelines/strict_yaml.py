"""YAML without duplicate keys, of which PyYAML silently keeps the last, so that part of an edit is lost."""

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import yaml

from gpt2_orchestration.client.field_errors import FieldError, join_path


class YamlError(Exception):
    """A text is not valid YAML, or has duplicate keys.

    Args:
        errors: The errors, with paths from the top of the text.
    """

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__("; ".join(map(str, errors)))
        self.errors = errors


def read_yaml(text: str) -> Any:
    """Parses one YAML document. Raises YamlError with every duplicate key."""
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            errors = list(_errors(loader, node))
            if not errors:
                return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise YamlError([FieldError("", "is nested too deeply; flatten it")]) from None
    except (yaml.YAMLError, ValueError) as error:
        # ValueError: a date such as 2026-02-30.
        raise YamlError([FieldError("", f"is not valid YAML: {' '.join(str(error).split())}")]) from error
    raise YamlError(errors)


def _errors(loader: yaml.SafeLoader, root: yaml.Node) -> Iterator[FieldError]:
    """Duplicate keys, and aliases of nodes that contain them, in the order of the text."""
    visited: set[int] = set()

    def visit(node: yaml.Node, path: str, parents: frozenset[int]) -> Iterator[FieldError]:
        if id(node) in parents:
            yield FieldError(path, f"line {_line(node)} is an alias of a node that contains it; write out the value")
        if id(node) in visited:
            # An alias: errors inside are reported at its anchor.
            return
        visited.add(id(node))
        inside = parents | {id(node)}
        if isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                yield from visit(item, f"{path}[{number}]", inside)
        elif isinstance(node, yaml.MappingNode):
            lines: dict[Hashable, int] = {}
            for key, value in node.value:
                name = _key(loader, key)
                place = join_path(path, name)
                if name in lines:
                    yield FieldError(place, f"duplicate key, {_lines(lines[name], _line(key))}; remove one")
                lines.setdefault(name, _line(key))
                yield from visit(value, place, inside)

    yield from visit(root, "", frozenset())


def _key(loader: yaml.SafeLoader, node: yaml.Node) -> Hashable:
    """A key as a dictionary compares it: 1 and 0x1 are equal, 1 and "1" are not."""
    if node.tag == "tag:yaml.org,2002:merge":
        return "<<"
    key = loader.construct_object(node, deep=True)
    if isinstance(key, Mapping | list):
        raise yaml.constructor.ConstructorError(None, None, "a key must be a string or a number", node.start_mark)
    return key if isinstance(key, Hashable) else repr(key)


def _lines(first: int, second: int) -> str:
    return f"in line {first}" if first == second else f"in line {first} and in line {second}"


def _line(node: yaml.Node) -> int:
    number: int = node.start_mark.line
    return number + 1
