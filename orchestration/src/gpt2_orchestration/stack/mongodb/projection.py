"""Projections: what of a document is answered."""

from collections.abc import Callable, Mapping
from typing import Any

from gpt2_orchestration.stack.mongodb.errors import CommandError, unsupported
from gpt2_orchestration.stack.mongodb.expressions import evaluate, is_true
from gpt2_orchestration.stack.mongodb.paths import MISSING, put

Document = dict[str, Any]
_Tree = dict[str, Any]
"""Names of fields; each with the tree of what is below, or None for all of it."""


def compile_projection(projection: Mapping[str, Any]) -> Callable[[Document], Document]:
    """A function that projects documents. Raises CommandError for what is no projection, or not supported."""
    kept: dict[str, Any] = {}
    computed: dict[str, Any] = {}
    for path, value in _flattened(projection):
        if "$" in path or (isinstance(value, dict) and {"$slice", "$elemMatch", "$meta"} & set(value)):
            raise unsupported(f"the projection of {path}")
        if isinstance(value, bool | int | float):
            kept[path] = is_true(value)
        else:
            computed[path] = value
    of_id = kept.pop("_id", None)
    if len(set(kept.values())) > 1 or (computed and False in kept.values()):
        raise CommandError("Cannot do exclusion and inclusion in one projection")
    includes = bool(computed) or (next(iter(kept.values())) if kept else bool(of_id))
    if not includes:
        tree = _tree([*kept, *(["_id"] if of_id is False else [])])
        return lambda document: _without(document, tree)
    tree = _tree([*kept, *([] if of_id is False or "_id" in computed else ["_id"])])

    def project(document: Document) -> Document:
        result: Document = _only(document, tree)
        for path, expression in computed.items():
            put(result, path, evaluate(expression, document))
        return result

    return project


def _flattened(projection: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Paths and values; `{"a": {"b": 1}}` is `{"a.b": 1}`."""
    found: list[tuple[str, Any]] = []
    for name, value in projection.items():
        path = prefix + name
        if isinstance(value, dict) and value and not next(iter(value)).startswith("$"):
            found += _flattened(value, f"{path}.")
        else:
            found.append((path, value))
    return found


def _tree(paths: list[str]) -> _Tree:
    tree: _Tree = {}
    for path in paths:
        branch = tree
        *way, last = path.split(".")
        for part in way:
            branch = branch.setdefault(part, {})
            if branch is None:
                break
        if branch is None or branch.get(last):
            raise CommandError(f"Path collision at {path}")
        branch[last] = None
    return tree


def _only(document: Document, tree: _Tree) -> Document:
    result: Document = {}
    for name, value in document.items():
        if name in tree:
            below = value if tree[name] is None else _below(value, tree[name])
            if below is not MISSING:
                result[name] = below
    return result


def _below(value: Any, tree: _Tree) -> Any:
    if isinstance(value, dict):
        return _only(value, tree)
    if isinstance(value, list):
        members = (_below(item, tree) for item in value)
        return [member for member in members if member is not MISSING]
    return MISSING


def _without(value: Any, tree: _Tree) -> Any:
    if isinstance(value, list):
        return [_without(item, tree) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _without(item, tree[name]) if name in tree else item
        for name, item in value.items()
        if name not in tree or tree[name] is not None
    }
