"""Snapshots: they change when documents come or go, and belong to one source."""

import base64

import pymongo
import pytest
from pydantic import SecretStr

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_common.errors import FailedPrecondition, InvalidRequest
from gpt2_exporter.mongo.connection import connect
from gpt2_exporter.mongo.snapshot import Snapshot, take_snapshot

SOURCE = pb.MongoSource(database="news", collections=["articles", "letters"])


@pytest.fixture
def snapshot(settings):
    def snapshot(source=SOURCE):
        with connect(settings, source.connection) as server:
            return take_snapshot(server, source)

    return snapshot


def test_it_is_stable_and_changes_with_every_document_added_or_deleted(mongo, snapshot):
    mongo.news.articles.insert_many([{"n": n} for n in range(3)])
    tokens = [snapshot().token()]
    assert snapshot().token() == tokens[0]
    mongo.news.letters.insert_one({"n": 9})
    tokens.append(snapshot().token())
    mongo.news.articles.delete_one({"n": 0})
    tokens.append(snapshot().token())
    mongo.news.articles.delete_one({"n": 2})
    tokens.append(snapshot().token())
    assert len(set(tokens)) == 4
    assert snapshot().documents == 2


def test_it_counts_what_matches(mongo, snapshot):
    mongo.news.articles.insert_many([{"n": n} for n in range(10)])
    source = pb.MongoSource(database="news", collections=["articles"], filter='{"n": {"$gte": 4}}')
    assert snapshot(source).documents == 6


def test_an_empty_source_has_one_too(mongo, snapshot):
    assert snapshot().documents == 0
    assert Snapshot.parse(snapshot().token(), SOURCE) == snapshot()


def test_it_survives_a_round_as_a_string(mongo, snapshot):
    mongo.news.articles.insert_many([{"_id": "ä"}, {"_id": 5}, {"n": 1}])
    assert Snapshot.parse(snapshot().token(), SOURCE) == snapshot()


@pytest.mark.parametrize(
    "token",
    ["x", "!", "ä", base64.b64encode(b"{}").decode(), base64.b64encode(b"[1]").decode(), "A" * 100_000]
    + [base64.b64encode(text).decode() for text in (b'[1,"a",[[1]]]', b'[2,"a",[]]', b"[" * 50_000, b'[1,"a",5]')],
)
def test_what_is_none_is_refused(token):
    with pytest.raises(InvalidRequest) as error:
        Snapshot.parse(token, SOURCE)
    [(field, description)] = error.value.violations
    assert field == "snapshot"
    assert "call DescribeSource for this source again" in description


@pytest.mark.parametrize(
    "change",
    [
        {"database": "other"},
        {"collections": ["letters", "articles"]},
        {"filter": '{"a": 1}'},
        {"connection": "other"},
        {"text_field": "body"},
    ],
)
def test_that_of_another_source_is_refused(mongo, snapshot, change):
    fields = {"database": "news", "collections": ["articles", "letters"], **change}
    with pytest.raises(InvalidRequest, match="describes another source"):
        Snapshot.parse(snapshot().token(), pb.MongoSource(**fields))


def test_defaults_written_out_are_the_same_source(mongo, snapshot):
    same = pb.MongoSource(database="news", collections=["articles", "letters"], text_field="text", filter="{}")
    assert Snapshot.parse(snapshot().token(), same) == snapshot()


def test_a_server_that_sorts_numbers_as_text_is_refused_instead_of_losing_documents(lying_uri, settings):
    with pymongo.MongoClient(lying_uri) as client:
        client.sorts.articles.insert_many([{"_id": number, "text": "a"} for number in range(40)])
    source = pb.MongoSource(database="sorts", collections=["articles"])
    with (
        connect(settings.model_copy(update={"mongodb_uri": SecretStr(lying_uri)}), "") as server,
        pytest.raises(FailedPrecondition, match=r"_ids of sorts\.articles in their order"),
    ):
        take_snapshot(server, source)
