"""Exports from MongoDB, against a server process."""

import json
from datetime import UTC, datetime

import pytest
from bson import Int64, ObjectId
from pydantic import SecretStr
from pymongo.errors import OperationFailure

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_common.errors import FailedPrecondition, InvalidRequest, JobCancelled, Unavailable
from gpt2_exporter.mongo.connection import connect
from gpt2_exporter.mongo.snapshot import take_snapshot
from gpt2_exporter.rejects.reasons import IN_LIST

HOSTILE = [
    "\0nul\0",
    "\ufeffBOM",
    "a\r\nb\r",
    "e\u0301",
    "\N{WOMAN}\u200d\N{WOMAN}\u200d\N{GIRL}",
    "שלום مرحبا",
    "\u2028\u00a0\u3000",
    "<|endoftext|>",
    " ",
]


def ask(*collections, database="news", max_rejected=0, snapshot="", **source):
    return pb.ExportCorpusRequest(
        source=pb.MongoSource(database=database, collections=collections or ["articles"], **source),
        max_rejected=max_rejected,
        snapshot=snapshot,
    )


def test_every_document_is_exported_in_the_order_of_ids_with_its_text_unchanged(mongo, context, export):
    ids = mongo.news.articles.insert_many([{"text": text} for text in HOSTILE]).inserted_ids
    output = export(ask(), context)
    assert output.rows == [
        {"id": str(identifier), "source": "mongodb:news.articles", "text": text}
        for identifier, text in zip(ids, HOSTILE, strict=True)
    ]
    assert output.counts == {
        "documents": len(HOSTILE),
        "bytes": sum(len(text.encode()) for text in HOSTILE),
        "rejected": 0,
    }


def test_collections_are_read_in_the_order_of_the_request(mongo, context, export):
    mongo.news.first.insert_one({"text": "1"})
    mongo.news.second.insert_one({"text": "2"})
    corpus = export(ask("second", "first"), context)
    assert corpus.texts == ["2", "1"]
    assert corpus.properties["source"] == "MongoDB: news.second, news.first"


@pytest.mark.parametrize("path", ["body.text", "body.inner.deep"])
def test_the_text_can_be_nested(mongo, context, path, export):
    mongo.news.articles.insert_one({"body": {"text": "nested", "inner": {"deep": "nested"}}})
    assert export(ask(text_field=path), context).texts == ["nested"]


def test_only_what_the_filter_matches_is_exported(mongo, context, export):
    mongo.news.articles.insert_many([{"text": str(n), "n": n, "lang": "de" if n % 2 else "en"} for n in range(10)])
    output = export(ask(filter='{"lang": "de", "n": {"$lt": {"$numberInt": "6"}}}'), context)
    assert output.texts == ["1", "3", "5"]


def test_ids_of_all_types_are_exported_none_twice(mongo, context, export):
    ids = ["text", 3, 2.5, Int64(7), ObjectId(), "more"]
    mongo.news.articles.insert_many([{"_id": identifier, "text": str(identifier)} for identifier in ids])
    output = export(ask(), context)
    assert sorted(output.texts) == sorted(map(str, ids))
    assert {row["id"] for row in output.rows} >= {"text", "3", "2.5", "7"}


UNUSABLE = [
    ({}, "text missing"),
    ({"text": None}, "text null"),
    ({"text": ""}, "text empty"),
    ({"text": 5}, "text not a string"),
    ({"text": ["a"]}, IN_LIST),
    ({"text": {"text": "a"}}, "text not a string"),
    ({"text": datetime(2020, 1, 1, tzinfo=UTC)}, "text not a string"),
]


@pytest.mark.parametrize(("document", "reason"), UNUSABLE)
def test_an_unusable_document_fails_the_job_and_is_named(mongo, context, document, reason, export):
    identifier = mongo.news.articles.insert_many([{"text": "good"}, document]).inserted_ids[1]
    with pytest.raises(FailedPrecondition) as error:
        export(ask(), context)
    for part in (f"1 {reason}", str(identifier), "source.text_field", "max_rejected"):
        assert part in error.value.message


def test_unusable_documents_within_the_limit_are_counted_by_reason(mongo, context, export):
    mongo.news.articles.insert_many([{"text": "good"}, *(dict(document) for document, _ in UNUSABLE)])
    output = export(ask(max_rejected=len(UNUSABLE)), context)
    assert output.texts == ["good"]
    assert output.counts["rejected"] == len(UNUSABLE)
    assert output.summary["rejected_by_reason"]["text not a string"] == 3
    assert [reject["reason"] for reject in output.rejects] == [reason for _, reason in UNUSABLE]


def test_at_most_100_rejects_are_sampled(mongo, context, export):
    mongo.news.articles.insert_many([{"text": "good"}, *({"n": n} for n in range(150))])
    output = export(ask(max_rejected=-1), context)
    assert (len(output.rejects), output.counts["rejected"]) == (100, 150)


def test_a_corpus_without_one_usable_document_is_refused(mongo, context, export):
    mongo.news.articles.insert_many([{"title": "a"}, {"title": "b"}])
    with pytest.raises(FailedPrecondition, match=r"not one document is usable: 2 text missing"):
        export(ask(max_rejected=-1), context)


def test_broken_utf8_is_counted_and_does_not_stop_the_export(mongo, wire, make_context, export):
    mongo.news.articles.insert_many([{"text": "before"}, {"text": "bro~~~ken"}, {"text": "after"}])
    context = make_context(mongodb_uri=SecretStr(f"mongodb://127.0.0.1:{wire.port}"))
    output = export(ask(max_rejected=1), context)
    assert output.texts == ["before", "after"]
    assert [reject["reason"] for reject in output.rejects] == ["broken UTF-8"]


def test_broken_utf8_over_the_limit_fails_the_job(mongo, wire, make_context, export):
    mongo.news.articles.insert_many([{"text": "before"}, {"text": "bro~~~ken"}])
    context = make_context(mongodb_uri=SecretStr(f"mongodb://127.0.0.1:{wire.port}"))
    with pytest.raises(FailedPrecondition, match="1 broken UTF-8"):
        export(ask(), context)


def test_connections_lost_again_and_again_cost_no_document(mongo, wire, make_context, export):
    texts = [f"{n:05d} " + "x" * 400 for n in range(6000)]
    mongo.news.articles.insert_many([{"text": text} for text in texts])
    wire.cut_after = 900_000
    context = make_context(mongodb_uri=SecretStr(f"mongodb://127.0.0.1:{wire.port}"))
    assert export(ask(), context).texts == texts
    assert wire.connections_cut >= 2


def test_an_empty_collection_is_an_error_that_names_it(mongo, context, export):
    with pytest.raises(FailedPrecondition, match=r"news\.articles has no document: correct source\.database"):
        export(ask(), context)


def test_a_filter_that_matches_nothing_is_an_error_that_names_it(mongo, context, export):
    mongo.news.articles.insert_one({"text": "a"})
    with pytest.raises(FailedPrecondition) as error:
        export(ask(filter='{"lang": "de"}'), context)
    assert 'news.articles has no document that matches source.filter {"lang": "de"}' in error.value.message


def test_a_query_that_the_server_refuses_names_the_filter(mongo, context, export):
    mongo.news.articles.insert_one({"text": "a"})
    with pytest.raises(InvalidRequest) as error:
        export(ask(filter='{"n": {"$nonsense": 1}}'), context)
    assert error.value.violations[0][0] == "source.filter"


@pytest.mark.process
def test_a_server_that_is_not_there_is_named_without_user_and_password(make_context, export):
    context = make_context(
        mongodb_uri=SecretStr("mongodb://some-user:some-password@127.0.0.1:9/?authSource=admin"),
        mongodb_timeout_seconds=0.3,
    )
    with pytest.raises(Unavailable) as error:
        export(ask(), context)
    assert "127.0.0.1:9 (setting GPT2_MONGODB_URI) does not answer within 0.3 s" in error.value.message
    assert "some-" not in error.value.message


@pytest.mark.parametrize("uri", ["postgres://a:secret@b", "mongodb://a:secret@:x@b", "mongodb://a@secret:99999999", ""])
def test_a_wrong_uri_names_the_setting_and_shows_nothing_of_it(make_context, uri, export):
    with pytest.raises(FailedPrecondition) as error:
        export(ask(), make_context(mongodb_uri=SecretStr(uri)))
    assert "the setting GPT2_MONGODB_URI is not a valid MongoDB URI" in error.value.message
    assert "secret" not in error.value.message
    assert error.value.__suppress_context__


def test_the_same_documents_give_the_same_digest(mongo, make_context, export):
    mongo.news.articles.insert_many([{"text": f"document {n} " * 50} for n in range(500)])
    first = export(ask(), make_context("a", corpus_shard_bytes=50_000))
    second = export(ask(), make_context("b", corpus_shard_bytes=50_000))
    assert len(first.shards) > 3
    assert first.digest == second.digest


def test_shards_are_cut_after_the_document_that_fills_them(mongo, make_context, export):
    mongo.news.articles.insert_many([{"text": "x" * 10} for _ in range(7)])
    output = export(ask(), make_context(corpus_shard_bytes=25))
    assert [shard.name for shard in output.shards] == [f"corpus-0000{n}.parquet" for n in range(3)]
    assert len(output.rows) == 7


def test_a_snapshot_leaves_out_what_came_later(mongo, settings, make_context, export):
    mongo.news.articles.insert_one({"text": "old"})
    with connect(settings, "") as server:
        token = take_snapshot(server, ask().source).token()
    mongo.news.articles.insert_one({"text": "new"})
    assert export(ask(snapshot=token), make_context("a")).texts == ["old"]
    assert export(ask(), make_context("b")).texts == ["old", "new"]


def test_progress_counts_documents_to_the_end(mongo, context, progress, export):
    mongo.news.articles.insert_many([{"text": str(n)} for n in range(300)])
    export(ask(), context)
    last = progress.reports[-1]
    assert (last.phase, last.done, last.total, last.unit) == ("reading", 300, 300, "documents")


def test_a_cancelled_export_leaves_no_artifact(mongo, make_context, progress, export):
    mongo.news.articles.insert_many([{"text": str(n)} for n in range(2000)])
    progress.on_progress = lambda _: progress.interruption.cancel()
    context = make_context()
    with pytest.raises(JobCancelled):
        export(ask(), context)
    assert context.committed("corpus", "corpus") is None


def test_a_retry_with_corrected_documents_resumes_after_the_last_shard(mongo, make_context, export):
    documents = [{"text": "x" * 100, "n": n} for n in range(1000)]
    documents[700] = {"n": 700}
    mongo.news.articles.insert_many(documents)
    with pytest.raises(FailedPrecondition, match="text missing"):
        export(ask(), make_context(corpus_shard_bytes=10_000))
    assert json.loads((make_context().work / "export.json").read_text())["shards"] == 7
    mongo.news.articles.update_one({"n": 700}, {"$set": {"text": "mended"}})
    assert export(ask(), make_context(attempt=2, corpus_shard_bytes=10_000)).texts[700] == "mended"


def test_a_job_whose_corpus_is_committed_is_not_done_again(mongo, make_context, export):
    mongo.news.articles.insert_one({"text": "a"})
    first = export(ask(), make_context())
    mongo.drop_database("news")
    assert export(ask(), make_context(attempt=2)).digest == first.digest
    assert first.shards


@pytest.mark.parametrize(("code", "words"), [(18, "refuses user and password"), (13, "does not let this user read")])
@pytest.mark.process
def test_a_refused_user_is_an_error_that_names_the_setting(settings, code, words):
    with pytest.raises(FailedPrecondition) as error, connect(settings, ""):
        raise OperationFailure("not shown: secret", code)
    assert words in error.value.message
    assert "behind the setting GPT2_MONGODB_URI" in error.value.message
    assert "secret" not in error.value.message
