"""Inserts, updates and deletions."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import bson

from gpt2_orchestration.stack.mongodb.catalog import check_name
from gpt2_orchestration.stack.mongodb.documents import from_document, to_document, to_stored
from gpt2_orchestration.stack.mongodb.errors import DUPLICATE_KEY, CommandError, unsupported
from gpt2_orchestration.stack.mongodb.projection import compile_projection
from gpt2_orchestration.stack.mongodb.store import Store, Stored
from gpt2_orchestration.stack.mongodb.update import updated, upserted
from gpt2_orchestration.stack.mongodb.wire import CODEC, Command

Matching: TypeAlias = Callable[[int, Mapping[str, Any], Mapping[str, Any]], Iterator[Stored]]
"""Of a collection, a query and a sort: the documents."""


class Writes:
    """Carries out the commands that write.

    Args:
        store: Where the documents are.
        matching: Finds documents.
    """

    def __init__(self, store: Store, matching: Matching) -> None:
        self._store = store
        self._matching = matching

    def insert(self, command: Command) -> dict[str, Any]:
        """`insert`."""
        raws = command.sequences.get("documents") or [
            bson.encode(document, codec_options=CODEC) for document in command.body.get("documents", [])
        ]
        name = check_name(command.body["$db"], command.body["insert"])

        def insert_one(number: int, _: int, raw: bytes) -> None:
            document = to_stored(raw)
            if not self._store.insert(number, document):
                raise _duplicate(name, document)

        done, errors = self._each(command, "insert", raws, insert_one)
        return {"n": done, **errors}

    def update(self, command: Command) -> dict[str, Any]:
        """`update`."""
        changes = _arguments(command, "updates")
        counts = {"n": 0, "nModified": 0}
        inserted: list[dict[str, Any]] = []

        def update_one(number: int, index: int, change: dict[str, Any]) -> None:
            if change.get("arrayFilters") or change.get("collation"):
                raise unsupported("array filters and collations")
            query, many = change["q"], bool(change.get("multi"))
            found = list(_some(self._matching(number, query, change.get("sort") or {}), many))
            for stored in found:
                counts["n"] += 1
                counts["nModified"] += self._replace(number, stored, change["u"])
            if not found and change.get("upsert"):
                new = self._upsert(number, command.body["update"], query, change["u"])
                counts["n"] += 1
                inserted.append({"index": index, "_id": _id_of(new)})

        _, errors = self._each(command, "update", changes, update_one)
        return {**counts, **({"upserted": inserted} if inserted else {}), **errors}

    def delete(self, command: Command) -> dict[str, Any]:
        """`delete`."""
        deleted = 0

        def delete_one(number: int, _: int, deletion: dict[str, Any]) -> None:
            nonlocal deleted
            if deletion.get("collation"):
                raise unsupported("collations")
            for stored in list(_some(self._matching(number, deletion["q"], {}), not deletion.get("limit"))):
                self._store.delete(number, stored.key)
                deleted += 1

        _, errors = self._each(command, "delete", _arguments(command, "deletes"), delete_one)
        return {"n": deleted, **errors}

    def find_and_modify(self, command: Command) -> dict[str, Any]:
        """`findAndModify`."""
        body = command.body
        if body.get("arrayFilters"):
            raise unsupported("array filters")
        query, removes = body.get("query") or {}, bool(body.get("remove"))
        with self._store.transaction():
            number = self._store.require(body["$db"], check_name(body["$db"], body["findAndModify"]))
            stored = next(_some(self._matching(number, query, body.get("sort") or {}), False), None)
            before = to_document(stored.raw) if stored else None
            last: dict[str, Any] = {"n": int(stored is not None)}
            after = None
            if removes and stored:
                self._store.delete(number, stored.key)
            elif stored:
                self._replace(number, stored, body["update"])
                after = to_document(self._store.get(number, stored.key).raw)
            elif body.get("upsert") and not removes:
                new = self._upsert(number, body["findAndModify"], query, body["update"])
                last = {"n": 1, "upserted": _id_of(new)}
                after = to_document(new.raw)
        if not removes:
            last["updatedExisting"] = stored is not None
        value = after if body.get("new") else before
        if value is not None and body.get("fields"):
            value = compile_projection(body["fields"])(value)
        return {"lastErrorObject": last, "value": value}

    def _each(
        self, command: Command, name: str, operations: list[Any], carry_out: Callable[[int, int, Any], None]
    ) -> tuple[int, dict[str, Any]]:
        """Carries out operations up to the first error, or all; returns how many went well, and the errors' field."""
        body = command.body
        done, errors = 0, []
        with self._store.transaction():
            number = self._store.require(body["$db"], check_name(body["$db"], body[name]))
            for index, operation in enumerate(operations):
                try:
                    carry_out(number, index, operation)
                except CommandError as error:
                    errors.append({"index": index, "code": error.code, "errmsg": error.message, **error.details})
                    if body.get("ordered", True):
                        break
                else:
                    done += 1
        return done, {"writeErrors": errors} if errors else {}

    def _replace(self, number: int, stored: Stored, change: Any) -> bool:
        """Whether the document has changed."""
        new = from_document(updated(to_document(stored.raw), change))
        if new.raw == stored.raw:
            return False
        self._store.replace(number, new)
        return True

    def _upsert(self, number: int, name: str, query: Mapping[str, Any], change: Any) -> Stored:
        new = from_document(upserted(query, change))
        if not self._store.insert(number, new):
            raise _duplicate(name, new)
        return new


def _arguments(command: Command, name: str) -> list[dict[str, Any]]:
    raws = command.sequences.get(name)
    return [to_document(raw) for raw in raws] if raws else list(command.body.get(name, []))


def _some(found: Iterator[Stored], many: bool) -> Iterator[Stored]:
    for stored in found:
        yield stored
        if not many:
            return


def _id_of(document: Stored) -> Any:
    return to_document(document.raw)["_id"]


def _duplicate(name: str, document: Stored) -> CommandError:
    identifier = _id_of(document)
    return CommandError(
        f"E11000 duplicate key error collection: {name} index: _id_ dup key: {{ _id: {identifier!r} }}",
        DUPLICATE_KEY,
        keyPattern={"_id": 1},
        keyValue={"_id": identifier},
    )
