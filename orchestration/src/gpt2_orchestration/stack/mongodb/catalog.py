"""Databases, collections and indexes."""

from typing import Any

import bson

from gpt2_orchestration.stack.mongodb.errors import (
    INVALID_NAMESPACE,
    NAMESPACE_EXISTS,
    NAMESPACE_NOT_FOUND,
    CommandError,
    unsupported,
)
from gpt2_orchestration.stack.mongodb.query import compile_filter
from gpt2_orchestration.stack.mongodb.store import Store
from gpt2_orchestration.stack.mongodb.wire import Command

_ID_INDEX = {"v": 2, "key": {"_id": 1}, "name": "_id_"}
_PLAIN_OPTIONS = {"create", "$db", "lsid", "comment", "writeConcern", "capped", "autoIndexId", "apiVersion"}
_INDEX_OPTIONS = {"key", "name", "v", "background", "sparse", "hidden", "partialFilterExpression", "unique"}


def check_name(database: str, name: Any) -> str:
    """The name of a collection. Raises CommandError where MongoDB allows none such."""
    if not isinstance(name, str) or not name or "\0" in name or "$" in name or name.startswith((".", "system.")):
        raise CommandError(f"Invalid collection name: {database}.{name}", INVALID_NAMESPACE)
    if not database or any(sign in database for sign in '/\\. "$\0') or name.endswith("."):
        raise CommandError(f"Invalid namespace: {database}.{name}", INVALID_NAMESPACE)
    return name


class Catalog:
    """Carries out the commands on databases, collections and indexes.

    Args:
        store: Where they are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, command: Command) -> dict[str, Any]:
        """`create`."""
        body = command.body
        if "viewOn" in body:
            raise unsupported("views")
        for option in set(body) - _PLAIN_OPTIONS:
            if not option.startswith("$"):
                raise unsupported(f"{option!r} of create")
        if body.get("capped"):
            raise unsupported("capped collections")
        name = check_name(body["$db"], body["create"])
        if self._store.find(body["$db"], name) is not None:
            raise CommandError(f"Collection {body['$db']}.{name} already exists.", NAMESPACE_EXISTS)
        self._store.require(body["$db"], name)
        return {}

    def drop(self, command: Command) -> dict[str, Any]:
        """`drop`; that of a collection that is not there succeeds."""
        number = self._store.find(command.body["$db"], command.body["drop"])
        if number is not None:
            with self._store.transaction():
                self._store.drop(number)
        return {}

    def drop_database(self, command: Command) -> dict[str, Any]:
        """`dropDatabase`."""
        database = command.body["$db"]
        with self._store.transaction():
            for name in self._store.collections(database):
                self._store.drop(self._store.require(database, name))
        return {"dropped": database}

    def rename(self, command: Command) -> dict[str, Any]:
        """`renameCollection`."""
        (database, _, name), (to_database, _, to_name) = (
            command.body[part].partition(".") for part in ("renameCollection", "to")
        )
        number = self._store.find(database, name)
        if number is None:
            raise CommandError(f"Source collection {database}.{name} does not exist", NAMESPACE_NOT_FOUND)
        check_name(to_database, to_name)
        other = self._store.find(to_database, to_name)
        if other is not None and (other == number or not command.body.get("dropTarget")):
            raise CommandError("target namespace exists", NAMESPACE_EXISTS)
        with self._store.transaction():
            if other is not None:
                self._store.drop(other)
            self._store.rename(number, to_database, to_name)
        return {}

    def list_databases(self, command: Command) -> dict[str, Any]:
        """`listDatabases`."""
        matches = compile_filter(command.body.get("filter") or {})
        found: list[dict[str, Any]] = [
            {"name": name, "sizeOnDisk": 0, "empty": False} for name in self._store.databases()
        ]
        return {"databases": [entry for entry in found if matches(entry)], "totalSize": 0}

    def list_collections(self, command: Command) -> list[dict[str, Any]]:
        """The entries of `listCollections`."""
        matches = compile_filter(command.body.get("filter") or {})
        found: list[dict[str, Any]] = [
            {"name": name, "type": "collection", "options": {}, "info": {"readOnly": False}, "idIndex": _ID_INDEX}
            for name in self._store.collections(command.body["$db"])
        ]
        return [entry for entry in found if matches(entry)]

    def create_indexes(self, command: Command) -> dict[str, Any]:
        """`createIndexes`: notes them, as they change no result; those that would are refused."""
        database = command.body["$db"]
        specifications = command.body["indexes"]
        for specification in specifications:
            _check_index(specification)
        existed = self._store.find(database, command.body["createIndexes"]) is not None
        number = self._store.require(database, check_name(database, command.body["createIndexes"]))
        before = len(self._store.indexes(number)) + 1
        for specification in specifications:
            if specification["key"] != {"_id": 1}:
                self._store.add_index(number, specification["name"], bson.encode({"v": 2, **specification}))
        after = len(self._store.indexes(number)) + 1
        return {"numIndexesBefore": before, "numIndexesAfter": after, "createdCollectionAutomatically": not existed}

    def drop_indexes(self, command: Command) -> dict[str, Any]:
        """`dropIndexes`."""
        number = self._find(command, "dropIndexes")
        known = self._store.indexes(number)
        index = command.body["index"]
        for name, specification in known:
            if index in ("*", name) or index == bson.decode(specification)["key"]:
                self._store.drop_index(number, name)
        return {"nIndexesWas": len(known) + 1}

    def list_indexes(self, command: Command) -> list[dict[str, Any]]:
        """The entries of `listIndexes`."""
        number = self._find(command, "listIndexes")
        return [_ID_INDEX, *(bson.decode(specification) for _, specification in self._store.indexes(number))]

    def _find(self, command: Command, argument: str) -> int:
        name = command.body[argument]
        number = self._store.find(command.body["$db"], name)
        if number is None:
            raise CommandError(f"ns does not exist: {command.body['$db']}.{name}", NAMESPACE_NOT_FOUND)
        return number


def _check_index(specification: dict[str, Any]) -> None:
    if specification.get("unique") and specification["key"] != {"_id": 1}:
        raise unsupported("unique indexes beside that of _id")
    if any(direction not in (1, -1) for direction in specification["key"].values()):
        raise unsupported(f"an index such as {specification['key']}")
    for option in set(specification) - _INDEX_OPTIONS:
        raise unsupported(f"{option!r} of an index")
