"""Aggregation: the common stages; the others are refused."""

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from bson.decimal128 import Decimal128

from gpt2_orchestration.stack.mongodb.errors import CommandError, unsupported
from gpt2_orchestration.stack.mongodb.expressions import evaluate
from gpt2_orchestration.stack.mongodb.order import sort_key
from gpt2_orchestration.stack.mongodb.paths import MISSING, find_values, get, put
from gpt2_orchestration.stack.mongodb.projection import compile_projection
from gpt2_orchestration.stack.mongodb.query import compile_filter

Document = dict[str, Any]
Stage = Callable[[Iterable[Document]], Iterable[Document]]


def compile_pipeline(pipeline: Sequence[Mapping[str, Any]]) -> Stage:
    """A function from documents to results. Raises CommandError for what is no pipeline, or not supported."""
    stages = [_stage(stage) for stage in pipeline]

    def run(documents: Iterable[Document]) -> Iterable[Document]:
        for stage in stages:
            documents = stage(documents)
        return documents

    return run


def sorted_by(documents: Iterable[Document], sort: Mapping[str, Any]) -> list[Document]:
    """The documents in an order: by the least value of an array where it ascends, by the greatest where it descends."""
    result = list(documents)
    for path, direction in reversed(list(sort.items())):
        if direction not in (1, -1):
            raise unsupported(f"sorting by {direction!r}")
        result.sort(key=lambda document: _rank_of(document, path, direction), reverse=direction == -1)
    return result


def _rank_of(document: Document, path: str, direction: int) -> bytes:
    keys: list[bytes] = []
    for value in find_values(document, path.split(".")):
        if isinstance(value, list):
            # An empty array comes before null.
            keys += map(sort_key, value) if value else [b"\2"]
        else:
            keys.append(sort_key(None if value is MISSING else value))
    keys = keys or [sort_key(None)]
    return min(keys) if direction == 1 else max(keys)


def _stage(stage: Mapping[str, Any]) -> Stage:
    if not isinstance(stage, dict) or len(stage) != 1:
        raise CommandError("A pipeline stage specification object must contain exactly one field")
    [(name, operand)] = stage.items()
    match name:
        case "$match":
            matcher = compile_filter(operand)
            return lambda documents: filter(matcher, documents)
        case "$project":
            project = compile_projection(operand)
            return lambda documents: map(project, documents)
        case "$addFields" | "$set":
            return lambda documents: (_with(document, operand) for document in documents)
        case "$unset":
            paths = dict.fromkeys([operand] if isinstance(operand, str) else operand, 0)
            without = compile_projection(paths)
            return lambda documents: map(without, documents)
        case "$sort":
            return lambda documents: sorted_by(documents, operand)
        case "$limit":
            return lambda documents: islice(documents, int(operand))
        case "$skip":
            return lambda documents: islice(documents, int(operand), None)
        case "$count":
            return lambda documents: _counted(documents, operand)
        case "$sample":
            return lambda documents: _sample(documents, int(operand["size"]))
        case "$unwind":
            return lambda documents: _unwound(documents, operand)
        case "$group":
            return lambda documents: _grouped(documents, operand)
    raise unsupported(f"the aggregation stage {name}")


def _with(document: Document, fields: Mapping[str, Any]) -> Document:
    result = copy.deepcopy(document)
    for path, expression in fields.items():
        put(result, path, evaluate(expression, document))
    return result


def _counted(documents: Iterable[Document], name: str) -> Iterator[Document]:
    count = sum(1 for _ in documents)
    if count:
        yield {name: count}


def _sample(documents: Iterable[Document], size: int) -> list[Document]:
    held = list(documents)
    return random.sample(held, min(size, len(held)))


def _unwound(documents: Iterable[Document], operand: Any) -> Iterator[Document]:
    if not isinstance(operand, str):
        raise unsupported("$unwind with options")
    path = operand.removeprefix("$")
    for document in documents:
        value = get(document, path.split("."))
        if value is None or value is MISSING:
            continue
        for item in value if isinstance(value, list) else [value]:
            yield _with(document, {path: {"$literal": item}})


def _grouped(documents: Iterable[Document], operand: Mapping[str, Any]) -> Iterator[Document]:
    if "_id" not in operand:
        raise CommandError("a group specification must include an _id")
    outputs = {name: value for name, value in operand.items() if name != "_id"}
    for output in outputs.values():
        if not isinstance(output, dict) or len(output) != 1 or next(iter(output)) not in _ACCUMULATORS:
            raise unsupported(f"the accumulator {output!r}")
    groups: dict[bytes, tuple[Any, list[list[Any]]]] = {}
    for document in documents:
        identifier = evaluate(operand["_id"], document)
        identifier = None if identifier is MISSING else identifier
        _, columns = groups.setdefault(sort_key(identifier), (identifier, [[] for _ in outputs]))
        for column, output in zip(columns, outputs.values(), strict=True):
            column.append(evaluate(next(iter(output.values())), document))
    for identifier, columns in groups.values():
        results = {
            name: _ACCUMULATORS[next(iter(output))](column)
            for column, (name, output) in zip(columns, outputs.items(), strict=True)
        }
        yield {"_id": identifier, **results}


def _numbers(values: list[Any]) -> list[Any]:
    if any(isinstance(value, Decimal128) for value in values):
        raise unsupported("sums of Decimal128")
    return [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]


def _present(values: list[Any]) -> list[Any]:
    return [value for value in values if value is not None and value is not MISSING]


def _or_null(value: Any) -> Any:
    return None if value is MISSING else value


def _distinct(values: list[Any]) -> list[Any]:
    return list({sort_key(value): value for value in values if value is not MISSING}.values())


_ACCUMULATORS: Mapping[str, Callable[[list[Any]], Any]] = {
    "$sum": lambda values: sum(_numbers(values)),
    "$avg": lambda values: sum(found) / len(found) if (found := _numbers(values)) else None,
    "$min": lambda values: min(_present(values), key=sort_key, default=None),
    "$max": lambda values: max(_present(values), key=sort_key, default=None),
    "$first": lambda values: _or_null(values[0]),
    "$last": lambda values: _or_null(values[-1]),
    "$push": lambda values: [value for value in values if value is not MISSING],
    "$addToSet": _distinct,
}
