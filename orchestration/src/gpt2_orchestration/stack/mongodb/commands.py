"""Carries out commands: the names and arguments of MongoDB's, on the store."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from bson.datetime_ms import DatetimeMS

from gpt2_orchestration.stack.mongodb.bounds import WHOLE, id_bounds
from gpt2_orchestration.stack.mongodb.catalog import Catalog
from gpt2_orchestration.stack.mongodb.cursors import FIRST_BATCH, Cursors
from gpt2_orchestration.stack.mongodb.documents import LARGEST_DOCUMENT, to_document
from gpt2_orchestration.stack.mongodb.errors import COMMAND_NOT_FOUND, CommandError, unsupported
from gpt2_orchestration.stack.mongodb.expressions import is_true
from gpt2_orchestration.stack.mongodb.order import sort_key
from gpt2_orchestration.stack.mongodb.paths import MISSING, find_values
from gpt2_orchestration.stack.mongodb.pipeline import compile_pipeline, sorted_by
from gpt2_orchestration.stack.mongodb.projection import compile_projection
from gpt2_orchestration.stack.mongodb.query import compile_filter
from gpt2_orchestration.stack.mongodb.store import Store, Stored
from gpt2_orchestration.stack.mongodb.wire import LARGEST_MESSAGE, Command
from gpt2_orchestration.stack.mongodb.writes import Writes

_VERSION = (7, 0, 0, 0)
_WIRE_VERSION = 21
# What would change a result and is not supported.
_REFUSED = ("collation", "let", "min", "max", "tailable", "returnKey", "showRecordId", "startTransaction", "autocommit")
_ANY_SIZE = 1 << 30


class Commands:
    """Answers commands, one at a time.

    Args:
        store: Where the documents are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cursors = Cursors()
        self._lock = threading.Lock()
        catalog, writes = Catalog(store), Writes(store, self.matching)
        greetings = ("hello", "ismaster", "isMaster")
        nothing = ("ping", "endSessions", "logout", "setFreeMonitoring")
        self._commands: dict[str, Callable[[Command], dict[str, Any]]] = {
            **dict.fromkeys(greetings, self._greet),
            **{name: lambda _: {} for name in nothing},
            **dict.fromkeys(("buildInfo", "buildinfo"), self._build_info),
            "getMore": lambda command: self._cursors.more(
                command.body["getMore"], int(command.body.get("batchSize") or _ANY_SIZE)
            ),
            "killCursors": lambda command: self._cursors.kill(command.body["cursors"]),
            "find": self._find,
            "count": self._count,
            "distinct": self._distinct,
            "aggregate": self._aggregate,
            "insert": writes.insert,
            "update": writes.update,
            "delete": writes.delete,
            "findAndModify": writes.find_and_modify,
            "create": catalog.create,
            "drop": catalog.drop,
            "dropDatabase": catalog.drop_database,
            "renameCollection": catalog.rename,
            "listDatabases": catalog.list_databases,
            "listCollections": lambda command: self._listed(command, catalog.list_collections(command)),
            "createIndexes": catalog.create_indexes,
            "dropIndexes": catalog.drop_indexes,
            "listIndexes": lambda command: self._listed(command, catalog.list_indexes(command)),
        }

    def answer(self, command: Command) -> dict[str, Any]:
        """The answer to a command. Raises CommandError."""
        body = command.body
        name = next(iter(body), "")
        carry_out = self._commands.get(name)
        if carry_out is None:
            raise CommandError(f"no such command in the embedded MongoDB stand-in: {name!r}", COMMAND_NOT_FOUND)
        for argument in _REFUSED:
            if argument in body and body[argument] not in (False, None, {}):
                raise unsupported(f"{argument!r} of {name}")
        try:
            with self._lock:
                return carry_out(command)
        except (KeyError, TypeError, AttributeError) as error:
            raise CommandError(f"{name}: an argument is missing or of the wrong type ({error})") from error

    def matching(self, number: int, query: Mapping[str, Any], sort: Mapping[str, Any]) -> Iterator[Stored]:
        """Yields the documents of a collection that match, in an order."""
        bounds, matches = id_bounds(query), compile_filter(query)
        by_id = next(iter(sort), None) == "_id"
        if by_id and sort["_id"] not in (1, -1):
            raise unsupported(f"sorting by {sort['_id']!r}")
        if not by_id and bounds.ranges == (WHOLE,):
            found: Iterable[Stored] = self._store.scan_inserted(number)
        else:
            down = by_id and sort["_id"] == -1
            ranges = reversed(bounds.ranges) if down else bounds.ranges
            found = (stored for keys in ranges for stored in self._store.scan(number, keys, descending=down))
        if not bounds.exact:
            found = (stored for stored in found if matches(to_document(stored.raw)))
        if not sort or by_id:
            yield from found
            return
        held = [{"document": to_document(stored.raw), "stored": stored} for stored in found]
        paths = {f"document.{path}": direction for path, direction in sort.items()}
        yield from (item["stored"] for item in sorted_by(held, paths))

    def _find(self, command: Command) -> dict[str, Any]:
        body = command.body
        name, query, sort = body["find"], body.get("filter") or {}, body.get("sort") or {}
        number = self._store.find(body["$db"], name)
        projection = body.get("projection") or {}
        project = compile_projection(projection) if projection else None
        compile_filter(query)
        found = self.matching(number, query, sort) if number is not None else iter(())
        results: Iterator[Any] = (stored.raw for stored in found)
        results = _cut(results, int(body.get("skip") or 0), int(body.get("limit") or 0))
        if project is not None:
            results = (project(to_document(raw)) for raw in results)
        only = bool(body.get("singleBatch")) or int(body.get("limit") or 0) < 0
        return self._cursors.first(f"{body['$db']}.{name}", results, _batch_size(body), only=only)

    def _count(self, command: Command) -> dict[str, Any]:
        body = command.body
        found = self._number_of(body["$db"], body["count"], body.get("query") or {})
        found = max(0, found - int(body.get("skip") or 0))
        limit = abs(int(body.get("limit") or 0))
        return {"n": min(found, limit) if limit else found}

    def _number_of(self, database: str, name: str, query: Mapping[str, Any]) -> int:
        matches = compile_filter(query)
        number = self._store.find(database, name)
        if number is None:
            return 0
        bounds = id_bounds(query)
        if bounds.exact:
            return sum(self._store.count(number, keys) for keys in bounds.ranges)
        found = (stored for keys in bounds.ranges for stored in self._store.scan(number, keys))
        return sum(1 for stored in found if matches(to_document(stored.raw)))

    def _distinct(self, command: Command) -> dict[str, Any]:
        body = command.body
        number = self._store.find(body["$db"], body["distinct"])
        values: dict[bytes, Any] = {}
        for stored in self.matching(number, body.get("query") or {}, {}) if number is not None else ():
            for value in find_values(to_document(stored.raw), body["key"].split(".")):
                for item in value if isinstance(value, list) else [value]:
                    if item is not MISSING:
                        values.setdefault(sort_key(item), item)
        return {"values": [values[key] for key in sorted(values)]}

    def _aggregate(self, command: Command) -> dict[str, Any]:
        body = command.body
        name, pipeline = body["aggregate"], body["pipeline"]
        if not isinstance(name, str):
            raise unsupported("aggregations without a collection")
        query = pipeline[0]["$match"] if pipeline and set(pipeline[0]) == {"$match"} else {}
        rest = pipeline[1:] if query else pipeline
        run = compile_pipeline(rest)
        if len(rest) == 1 and _counts(rest[0].get("$group")):
            count = self._number_of(body["$db"], name, query)
            results: Iterable[dict[str, Any]] = [{"_id": rest[0]["$group"]["_id"], "n": count}] if count else []
        else:
            number = self._store.find(body["$db"], name)
            found = self.matching(number, query, {}) if number is not None else iter(())
            results = run(to_document(stored.raw) for stored in found)
        return self._cursors.first(f"{body['$db']}.{name}", results, _batch_size(body.get("cursor") or {}))

    def _listed(self, command: Command, documents: list[dict[str, Any]]) -> dict[str, Any]:
        name = next(iter(command.body))
        return self._cursors.first(f"{command.body['$db']}.$cmd.{name}", documents, _ANY_SIZE)

    def _greet(self, _: Command) -> dict[str, Any]:
        return {
            "helloOk": True,
            "ismaster": True,
            "isWritablePrimary": True,
            "maxBsonObjectSize": LARGEST_DOCUMENT,
            "maxMessageSizeBytes": LARGEST_MESSAGE,
            "maxWriteBatchSize": 100_000,
            "localTime": DatetimeMS(int(time.time() * 1000)),
            "logicalSessionTimeoutMinutes": 30,
            "connectionId": 1,
            "minWireVersion": 0,
            "maxWireVersion": _WIRE_VERSION,
            "readOnly": False,
        }

    def _build_info(self, _: Command) -> dict[str, Any]:
        version = ".".join(map(str, _VERSION[:3]))
        return {
            "version": version,
            "versionArray": list(_VERSION),
            "gitVersion": "gpt2 embedded stand-in",
            "modules": [],
            "bits": 64,
            "maxBsonObjectSize": LARGEST_DOCUMENT,
        }


def _counts(group: Any) -> bool:
    """Whether a group is that of a driver's count_documents."""
    if not isinstance(group, dict) or set(group) != {"_id", "n"} or group["n"] != {"$sum": 1}:
        return False
    return isinstance(group["_id"], int | None) and is_true(group["n"]["$sum"])


def _cut(documents: Iterator[Any], skip: int, limit: int) -> Iterator[Any]:
    if skip < 0:
        raise CommandError("skip must not be negative")
    for position, document in enumerate(documents):
        if limit and position >= skip + abs(limit):
            return
        if position >= skip:
            yield document
        if limit and position + 1 == skip + abs(limit):
            return


def _batch_size(arguments: Mapping[str, Any]) -> int:
    size = arguments.get("batchSize")
    return FIRST_BATCH if size is None else int(size)
