"""The embedded MongoDB stand-in: it answers as MongoDB does, or refuses."""

import threading
from datetime import UTC, datetime, timedelta

import pymongo
import pytest
from bson import Binary, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.datetime_ms import DatetimeMS
from hypothesis import given
from hypothesis import strategies as st
from pymongo.errors import DuplicateKeyError, OperationFailure, WriteError

from gpt2_orchestration.stack.mongodb.commands import Commands
from gpt2_orchestration.stack.mongodb.order import sort_key
from gpt2_orchestration.stack.mongodb.store import Store
from gpt2_orchestration.stack.mongodb.wire import WireServer

# In MongoDB's order.
ORDERED = [
    MinKey(), None, float("nan"), float("-inf"), Decimal128("-1E+400"), -(2**62), -2.5, Decimal128("-2.25"), -1, 0,
    1e-300, Decimal128("0.1"), 0.1, 1, Decimal128("9.75"), 10, Int64(2**62), float(2**63), float("inf"), "", "\0", "10",
    "9", "Z", "a", "a\0", "aa", "é", "\U0001f600", {}, {"a": None}, {"a": 1}, {"a": 1, "b": 1}, {"a": 2}, {"b": 1},
    {"a": "x"}, Binary(b"", 0), Binary(b"b", 0), Binary(b"a", 5), Binary(b"aa", 0), ObjectId("00" * 12),
    ObjectId("65" * 12), False, True, DatetimeMS(-(2**62)), DatetimeMS(0), DatetimeMS(2**62), Timestamp(1, 2),
    Timestamp(2, 1), MaxKey(),
]  # fmt: skip


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("mongodb"))
    with WireServer(("127.0.0.1", 0), Commands(store).answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pymongo.MongoClient("127.0.0.1", server.server_address[1]) as client:
            yield client
        server.shutdown()
    store.close()


@pytest.fixture
def collection(client):
    yield client.test.things
    client.drop_database("test")


def test_keys_sort_as_mongodb_sorts_the_values():
    keys = [sort_key(value) for value in ORDERED]
    assert keys == sorted(set(keys))


@given(st.lists(st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False)), min_size=2))
def test_keys_of_numbers_sort_by_their_exact_value(numbers):
    assert sorted(numbers, key=sort_key) == sorted(numbers)
    assert len({sort_key(number) for number in numbers}) == len(set(numbers))


@pytest.mark.process
def test_ids_of_every_type_are_held_once_and_found(collection):
    collection.insert_many([{"_id": identifier, "n": n} for n, identifier in reversed(list(enumerate(ORDERED)))])
    collection = collection.with_options(CodecOptions(datetime_conversion=DatetimeConversion.DATETIME_MS))
    assert [found["n"] for found in collection.find().sort("_id", 1)] == list(range(len(ORDERED)))
    assert [found["n"] for found in collection.find().sort("_id", -1).limit(2)] == [len(ORDERED) - 1, len(ORDERED) - 2]
    for n, identifier in enumerate(ORDERED):
        assert [found["n"] for found in collection.find({"_id": {"$eq": identifier}})] == [n]
    for same in (1.0, Int64(1), Decimal128("1.00")):
        with pytest.raises(DuplicateKeyError):
            collection.insert_one({"_id": same})
    assert collection.count_documents({}) == collection.estimated_document_count() == len(ORDERED)


@pytest.mark.process
def test_a_range_stays_inside_a_type(collection):
    collection.insert_many([{"_id": identifier} for identifier in (1, 2, "1", "2", {"k": 1}, None, float("nan"))])
    found = [[row["_id"] for row in collection.find({"_id": condition}).sort("_id", 1)] for condition in (
        {"$gt": 1}, {"$gte": float("-inf")}, {"$lte": "1"}, {"$gte": ""}, {"$gte": {}}, {"$gte": None},
    )]  # fmt: skip
    assert found == [[2], [1, 2], ["1"], ["1", "2"], [{"k": 1}], [None]]
    assert collection.count_documents({"_id": {"$gt": 1, "$lte": 2}}) == 1
    assert collection.count_documents({"$and": [{"_id": {"$in": [1, "2"]}}, {"_id": {"$gte": ""}}]}) == 1


@pytest.mark.parametrize(
    "name", ["select", "a-b", "a.b", "two words", "Ærø 日本", "order", "fs.files", "x'y", 'x"y', "1"]
)
@pytest.mark.process
def test_every_legal_name_of_a_collection_works(client, name):
    client.test[name].insert_one({"_id": 1})
    assert client.test.list_collection_names() == [name]
    assert client.test[name].find_one() == {"_id": 1}
    client.test[name].drop()
    assert client.test.list_collection_names() == []


@pytest.mark.parametrize("name", ["a$b", "system.x", "x" * 9 + "."])
@pytest.mark.process
def test_a_name_that_is_not_legal_is_refused(client, name):
    with pytest.raises(OperationFailure, match="Invalid"):
        client.test.command("insert", name, documents=[{"_id": 1}])


@pytest.mark.process
def test_dates_are_compared_as_dates(collection):
    begin = datetime(1969, 12, 31, tzinfo=UTC)
    collection.insert_many([{"day": begin + timedelta(days=n), "n": n} for n in range(5)])
    query = {"day": {"$gte": begin + timedelta(days=1), "$lt": begin + timedelta(days=3)}}
    assert [found["n"] for found in collection.find(query)] == [1, 2]
    assert [found["n"] for found in collection.find().sort("day", -1).limit(1)] == [4]


@pytest.mark.process
def test_values_of_every_type_come_back_as_they_are(collection):
    document = {"_id": 1, "values": ORDERED[3:], "long": Int64(1), "regex": Regex("a", "i"), "sub": {"z": 1, "a": [{}]}}
    collection.insert_one(document)
    found = collection.find_one({}, {"values": 0})
    assert found == {name: value for name, value in document.items() if name != "values"}
    assert isinstance(found["long"], Int64)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"tags": "a"}, [1, 2]),
        ({"tags": {"$all": ["a", "b"]}}, [1]),
        ({"tags": {"$size": 1}}, [2]),
        ({"parts.n": {"$gt": 1}}, [1]),
        ({"parts": {"$elemMatch": {"n": 1, "m": {"$exists": False}}}}, [1]),
        ({"parts.0.n": 2}, []),
        ({"lang": None}, [2, 3]),
        ({"lang": {"$exists": True}}, [1, 3]),
        ({"lang": {"$in": ["de", None]}}, [1, 2, 3]),
        ({"lang": {"$ne": "de"}}, [2, 3]),
        ({"lang": {"$type": "null"}}, [3]),
        ({"lang": {"$regex": "^D", "$options": "i"}}, [1]),
        ({"lang": {"$not": Regex("^d")}}, [2, 3]),
        ({"$or": [{"lang": "de"}, {"tags": {"$exists": 0}}]}, [1, 3]),
        ({"$expr": {"$gt": [{"$size": {"$ifNull": ["$tags", []]}}, 1]}}, [1]),
        ({"n": {"$mod": [2, 1]}}, [1]),
    ],
)
@pytest.mark.process
def test_queries(collection, query, expected):
    collection.insert_many(
        [
            {"_id": 1, "tags": ["a", "b"], "parts": [{"n": 1}, {"n": 2}], "lang": "de", "n": 3},
            {"_id": 2, "tags": ["a"]},
            {"_id": 3, "lang": None},
        ]
    )
    assert [found["_id"] for found in collection.find(query)] == expected
    assert collection.count_documents(query) == len(expected)


@pytest.mark.process
def test_projections_reach_into_lists(collection):
    collection.insert_one({"_id": 1, "parts": [{"a": 1, "b": 2}, "x", {"b": 3}], "c": {"d": 4, "e": 5}, "f": 6})
    assert collection.find_one({}, {"parts.a": 1, "c.d": 1}) == {"_id": 1, "parts": [{"a": 1}, {}], "c": {"d": 4}}
    assert collection.find_one({}, {"parts": 0, "c.e": 0, "_id": 0}) == {"c": {"d": 4}, "f": 6}
    assert collection.find_one({}, {"g": {"$concat": ["<", {"$toString": "$f"}, ">"]}}) == {"_id": 1, "g": "<6>"}


@pytest.mark.process
def test_updates_deletions_and_upserts(collection):
    collection.insert_many([{"_id": n, "n": n} for n in range(4)])
    assert collection.update_many({"n": {"$gt": 1}}, {"$set": {"a.b": 1}, "$inc": {"n": 10}}).modified_count == 2
    assert collection.find_one({"_id": 3}) == {"_id": 3, "n": 13, "a": {"b": 1}}
    assert collection.update_one({"_id": "new"}, {"$push": {"l": 1}}, upsert=True).upserted_id == "new"
    assert collection.find_one_and_update({"_id": "new"}, {"$push": {"l": 2}}, return_document=True)["l"] == [1, 2]
    assert collection.replace_one({"_id": 0}, {"r": 1}).matched_count == 1
    assert collection.find_one({"_id": 0}) == {"_id": 0, "r": 1}
    with pytest.raises(WriteError, match="_id"):
        collection.update_one({"_id": 0}, {"$set": {"_id": 9}})
    assert collection.delete_many({"n": {"$gte": 10}}).deleted_count == 2
    assert sorted(map(str, collection.distinct("_id"))) == ["0", "1", "new"]


@pytest.mark.process
def test_results_of_many_batches_come_whole(collection):
    collection.insert_many([{"_id": n, "text": "x" * 2000} for n in range(12_000)])
    assert [found["_id"] for found in collection.find()] == list(range(12_000))
    assert sum(found["_id"] for found in collection.find(batch_size=7).limit(100)) == 4950
    with pytest.raises(WriteError, match="too large"):
        collection.insert_one({"_id": -1, "text": "x" * (16 << 20)})


@pytest.mark.process
def test_aggregations(collection):
    collection.insert_many([{"_id": n, "kind": n % 2, "n": n, "l": [n, n]} for n in range(5)])
    pipeline = [
        {"$match": {"n": {"$gt": 0}}},
        {"$group": {"_id": "$kind", "sum": {"$sum": "$n"}}},
        {"$sort": {"_id": 1}},
    ]
    assert list(collection.aggregate(pipeline)) == [{"_id": 0, "sum": 6}, {"_id": 1, "sum": 4}]
    assert list(collection.aggregate([{"$unwind": "$l"}, {"$count": "c"}])) == [{"c": 10}]
    assert list(collection.aggregate([{"$sort": {"n": -1}}, {"$skip": 1}, {"$limit": 1}, {"$project": {"n": 1}}])) == [
        {"_id": 3, "n": 3}
    ]


REFUSED = {
    "views": lambda database: database.create_collection("v", viewOn="things", pipeline=[]),
    "capped": lambda database: database.create_collection("v", capped=True, size=1000),
    "lookup": lambda database: list(database.things.aggregate([{"$lookup": {"from": "x"}}])),
    "text": lambda database: list(database.things.find({"$text": {"$search": "a"}})),
    "where": lambda database: list(database.things.find({"$where": "1"})),
    "near": lambda database: list(database.things.find({"a": {"$near": [0, 0]}})),
    "collation": lambda database: list(database.things.find(collation={"locale": "de"})),
    "unique": lambda database: database.things.create_index("a", unique=True),
    "expiry": lambda database: database.things.create_index("a", expireAfterSeconds=5),
    "update": lambda database: database.things.update_one({}, {"$bit": {"a": {"and": 1}}}),
    "pipeline": lambda database: database.things.update_one({}, [{"$set": {"a": 1}}]),
    "positions": lambda database: database.things.update_one({}, {"$set": {"a.$[]": 1}}),
    "watch": lambda database: database.things.watch(),
    "command": lambda database: database.command("mapReduce", "things"),
    "array id": lambda database: database.things.insert_one({"_id": [1]}),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.process
def test_what_it_lacks_is_refused_never_answered_wrongly(collection, what):
    collection.insert_one({"_id": 1, "a": [1]})
    with pytest.raises(OperationFailure):
        REFUSED[what](collection.database)
    assert list(collection.find()) == [{"_id": 1, "a": [1]}]


@pytest.mark.process
def test_a_transaction_is_refused(client, collection):
    collection.insert_one({"_id": 1})
    with client.start_session() as session, pytest.raises(OperationFailure), session.start_transaction():
        collection.insert_one({"_id": 2}, session=session)
    assert collection.count_documents({}) == 1


@pytest.mark.process
def test_documents_outlive_the_server(tmp_path):
    for round_ in range(2):
        store = Store(tmp_path)
        with WireServer(("127.0.0.1", 0), Commands(store).answer) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            with pymongo.MongoClient("127.0.0.1", server.server_address[1]) as client:
                client.a.b.insert_one({"round": round_})
                assert [found["round"] for found in client.a.b.find()] == list(range(round_ + 1))
            server.shutdown()
        store.close()
