"""Reading from MongoDB where no server is needed: order of ids, broken batches, lost cursors."""

from types import SimpleNamespace

import bson
import pytest
from bson import Binary, Int64, MaxKey, MinKey, ObjectId
from bson.datetime_ms import DatetimeMS
from pymongo.errors import CursorNotFound, NetworkTimeout, OperationFailure

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_common.errors import DataLoss, FailedPrecondition
from gpt2_exporter.mongo.decoding import decode_batch
from gpt2_exporter.mongo.identifiers import BRACKET_RANGES, bracket_of, from_json, id_text, order_key, to_json, up_to
from gpt2_exporter.mongo.reading import MongoDocuments
from gpt2_exporter.mongo.snapshot import CollectionState, Snapshot
from gpt2_exporter.mongo.text import TextRule
from gpt2_exporter.rejects.reasons import IN_LIST

ORDERED = [
    MinKey(),
    None,
    float("nan"),
    -1,
    "a",
    {"b": 1},
    Binary(b"x", 5),
    ObjectId("65" * 12),
    True,
    DatetimeMS(2**62),
    bson.Timestamp(1, 2),
    MaxKey(),
]


def broken(document, good, bad):
    return bson.encode(document).replace(good, bad)


def test_every_kind_of_id_has_its_bracket_in_the_order_of_mongodb():
    assert [bracket_of(identifier) for identifier in ORDERED] == list(BRACKET_RANGES)


@pytest.mark.parametrize("identifier", [bson.Code("x"), bson.Regex("x")])
def test_an_id_without_order_is_an_error_with_advice(identifier):
    with pytest.raises(FailedPrecondition, match="give that document another _id"):
        bracket_of(identifier)


@pytest.mark.parametrize("identifier", ORDERED)
def test_an_id_survives_a_round_through_a_snapshot(identifier):
    again = from_json(to_json([identifier]))[0]
    assert (order_key(again), type(again)) == (order_key(identifier), type(identifier))


@pytest.mark.parametrize(
    ("identifier", "text"),
    [
        (ObjectId("65" * 12), "65" * 12),
        ("as it is ä", "as it is ä"),
        (5, "5"),
        (Int64(5), "5"),
        ({"a": "ä"}, '{"a":"ä"}'),
        (None, "null"),
    ],
)
def test_the_id_of_a_document_in_a_corpus(identifier, text):
    assert id_text(identifier) == text


def test_ranges_stay_inside_a_bracket():
    assert up_to(9) == {"$lte": 9}
    assert up_to(9, 3) == {"$gt": 3, "$lte": 9}
    assert up_to(None) == {"$eq": None}


@pytest.mark.parametrize("bad", [b"\xff\xfe\xfd", b"\xed\xa0\x80", b"\xc3\xc3\xc3"])
def test_a_broken_string_spoils_its_document_alone(bad):
    batch = b"".join([
        bson.encode({"_id": 1, "text": "one"}),
        broken({"_id": 2, "text": "tXXXo"}, b"XXX", bad),
        bson.encode({"_id": 3, "text": "three"}),
    ])  # fmt: skip
    found = list(decode_batch(batch))
    assert [(document["_id"], reason) for document, reason in found] == [(1, ""), (2, "broken UTF-8"), (3, "")]


@pytest.mark.parametrize("identifier", [1, "one", ObjectId("65" * 12), Int64(5), 2.5, True, {"a": 1}])
def test_a_document_that_is_no_bson_spoils_itself_alone(identifier):
    bad = bytearray(bson.encode({"_id": identifier, "text": "two"}))
    bad[bad.index(b"text") - 1] = 0x63
    batch = bson.encode({"_id": 0, "text": "one"}) + bytes(bad) + bson.encode({"_id": 3, "text": "three"})
    found = list(decode_batch(batch))
    assert [reason for _, reason in found] == ["", "broken BSON", ""]
    assert found[1][0]["_id"] == identifier


def test_a_broken_id_is_data_loss():
    with pytest.raises(DataLoss, match="_id is broken UTF-8"):
        list(decode_batch(broken({"_id": "tXXo", "text": "a"}, b"XX", b"\xff\xff")))


@pytest.mark.parametrize("batch", [b"\0\0\0\0\0", b"\x20\0\0\0garbage", bson.encode({"_id": 1}) + b"\1\2"])
def test_what_is_no_bson_is_data_loss(batch):
    with pytest.raises(DataLoss):
        list(decode_batch(batch))


@pytest.mark.parametrize(
    ("document", "path", "expected"),
    [
        ({"a": {"b": "x"}}, "a.b", ("x", "")),
        ({"a.b": "flat"}, "a.b", ("flat", "")),
        ({"a": [{"b": "x"}]}, "a.b", ("", IN_LIST)),
        ({"a": "x"}, "a.b", ("", "text missing")),
        ({"a": {"b": None}}, "a.b", ("", "text null")),
        ({"_id": "x"}, "_id", ("x", "")),
    ],
)
def test_the_path_of_the_text(document, path, expected):
    assert TextRule.of(pb.MongoSource(text_field=path)).read(document) == expected


class FlakyCollection:
    """Answers as a collection of the ids 1 to `count`, a batch at a time, and breaks after some batches."""

    full_name = "db.c"

    def __init__(self, count, errors, silent_end=False):
        self.count, self.errors, self.silent_end = count, list(errors), silent_end
        self.queries = []

    def get_database(self, name, read_preference):
        return {"c": self}

    def find_raw_batches(self, query, projection, sort, batch_size):
        self.queries.append(query)
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def __iter__(self):
        first = int(self.queries[-1]["_id"].get("$gt", 0)) + 1
        for begin in range(first, self.count + 1, 10):
            ids = range(begin, min(begin + 10, self.count + 1))
            yield b"".join(bson.encode({"_id": number, "text": str(number)}) for number in ids)
            if self.silent_end:
                return
            if self.errors:
                raise self.errors.pop(0)


def read_all(collection, count):
    server = SimpleNamespace(client=collection)
    snapshot = Snapshot("", (CollectionState(count, (count,)),))
    pauses = []
    source = pb.MongoSource(database="db", collections=["c"])
    documents = MongoDocuments(server, source, snapshot, pause=pauses.append)
    return [text for batch in documents.batches(None) for text in batch.texts], pauses


LOST = [CursorNotFound("gone"), NetworkTimeout("slow"), OperationFailure("session", 206), OperationFailure("x", 11600)]


def test_reading_resumes_after_the_last_id_of_a_lost_cursor():
    collection = FlakyCollection(95, LOST)
    texts, pauses = read_all(collection, 95)
    assert texts == [str(number) for number in range(1, 96)]
    assert (len(pauses), len(collection.queries)) == (4, 5)


def test_a_cursor_that_ends_early_without_an_error_loses_nothing():
    texts, _ = read_all(FlakyCollection(95, [], silent_end=True), 95)
    assert texts == [str(number) for number in range(1, 96)]


def test_reading_fails_when_the_server_stays_away():
    class Gone(FlakyCollection):
        def __iter__(self):
            raise NetworkTimeout("gone")

    with pytest.raises(NetworkTimeout):
        read_all(Gone(5, []), 5)


def test_an_error_that_will_not_pass_is_not_tried_again():
    collection = FlakyCollection(95, [OperationFailure("no", 2)])
    with pytest.raises(OperationFailure):
        read_all(collection, 95)
    assert len(collection.queries) == 1


def test_ids_that_are_objects_are_ordered_by_types_names_and_values():
    ordered = [{}, {"a": None}, {"a": 1}, {"a": 1, "b": 0}, {"a": 1.5}, {"a": 2}, {"b": 1}, {"a": "x"}, {"a": {"b": 1}}]
    assert sorted(ordered, key=order_key) == ordered
