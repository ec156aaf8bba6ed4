"""The id of a document in a corpus: another text for every other `_id`, and for every other collection."""

import uuid

import pytest
from bson import Binary, Decimal128, Int64, MaxKey, MinKey, ObjectId, Timestamp
from bson.datetime_ms import DatetimeMS
from hypothesis import given
from hypothesis import strategies as st

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_exporter.mongo.identifiers import id_text, to_json

HEX = "65f0c0ffee65f0c0ffee65f0"
ALIKE = [
    1, "1", '"1"', '"\\"1\\""', 2.5, "2.5", 1e22, "1e+22", True, "true", False, "false", None, "null", "None",
    ObjectId(HEX), HEX, HEX.upper(), f'{{"$oid":"{HEX}"}}', f'ObjectId("{HEX}")', float("nan"), "nan", "NaN",
    '{"$numberDouble":"NaN"}', float("inf"), float("-inf"), {"a": 1}, {"a": "1"}, '{"a":1}', {"a": ObjectId(HEX)},
    {"a": {"$oid": HEX}}, {"a": f'{{"$oid":"{HEX}"}}'}, {}, "{}", "", '""', Binary(b"x", 0), Binary(b"x", 5),
    Binary(uuid.UUID(int=1).bytes, 4), str(uuid.UUID(int=1)), DatetimeMS(0), "1970-01-01T00:00:00Z", DatetimeMS(-1),
    Timestamp(1, 2), Timestamp(2, 1), Decimal128("0.1"), 0.1, "0.1", MinKey(), MaxKey(), '{"$minKey":1}', Int64(2**62),
    str(2**62), "01", "-0", "+1", "1 ", " 1",
]  # fmt: skip
SCALARS = st.one_of(
    st.text(max_size=4),
    st.integers(-(2**63), 2**63 - 1).map(Int64),
    st.floats(),
    st.booleans(),
    st.none(),
    st.binary(min_size=12, max_size=12).map(ObjectId),
    st.sampled_from(ALIKE),
)
IDS = SCALARS | st.dictionaries(st.sampled_from(["a", "$oid", "$date", "b"]), SCALARS, max_size=2)


def test_distinct_ids_that_look_alike_have_distinct_texts():
    texts = [id_text(identifier) for identifier in ALIKE]
    assert len(set(texts)) == len(ALIKE)


@given(IDS)
def test_the_text_of_an_id_is_that_of_no_string(identifier):
    text = id_text(identifier)
    if identifier != text:
        assert id_text(text) != text


@given(IDS, IDS)
def test_two_ids_have_one_text_only_where_they_are_the_same(first, second):
    if id_text(first) == id_text(second):
        assert to_json(first) == to_json(second) or first == second


@pytest.mark.parametrize(
    ("identifier", "text"),
    [
        (ObjectId(HEX), HEX),
        ("plain", "plain"),
        ("2024-01-02/news", "2024-01-02/news"),
        ("0042", "0042"),
        ("Größe", "Größe"),
        (5, "5"),
        ("5", '"5"'),
        (HEX, f'"{HEX}"'),
    ],
)
def test_common_ids_stay_readable(identifier, text):
    assert id_text(identifier) == text


def test_ids_that_look_alike_are_distinct_in_a_corpus(mongo, context, export):
    mongo.news.articles.insert_many([{"_id": identifier, "text": "a"} for identifier in (1, "1", ObjectId(HEX), HEX)])
    corpus = export(pb.ExportCorpusRequest(source=pb.MongoSource(database="news", collections=["articles"])), context)
    assert {row["id"] for row in corpus.rows} == {"1", '"1"', HEX, f'"{HEX}"'}


SOURCES = {
    ("news", "a.b", ""): "mongodb:news.a.b",
    ("news", "a", ""): "mongodb:news.a",
    ("letters", "a", ""): "mongodb:letters.a",
    ("letters", "a", "Archive"): "mongodb:archive/letters.a",
    ("letters", "a/b", ""): "mongodb:letters.a/b",
}


@pytest.fixture
def archive(mongo_port, monkeypatch):
    """A named connection; to be asked for before the settings, which read it."""
    monkeypatch.setenv("GPT2_MONGODB_URI_ARCHIVE", f"mongodb://127.0.0.1:{mongo_port}")


def test_the_source_tells_collections_databases_and_connections_apart(mongo, archive, make_context, export):
    found = []
    for number, (database, collection, connection) in enumerate(SOURCES):
        mongo[database][collection].insert_one({"_id": str(number), "text": "x"})
        source = pb.MongoSource(database=database, collections=[collection], connection=connection)
        corpus = export(pb.ExportCorpusRequest(source=source), make_context(str(number)))
        found.append(corpus.rows[0]["source"])
    assert found == list(SOURCES.values())
