"""The same exports against every kind of server: the embedded one, FerretDB, and MongoDB where there is one."""

import itertools
from contextlib import suppress
from datetime import UTC, datetime

import pymongo
import pytest
from bson import Binary, Decimal128, ObjectId, Timestamp
from pydantic import SecretStr
from pymongo.errors import AutoReconnect, WriteError

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_common.errors import FailedPrecondition
from gpt2_exporter.mongo.connection import connect
from gpt2_exporter.mongo.snapshot import take_snapshot
from gpt2_exporter.rejects.reasons import IN_LIST

pytestmark = pytest.mark.process

TEXTS = ["\0nul", "\ufeffBOM", "a\r\nb", "e\u0301", "\N{WOMAN}\u200d\N{GIRL}", "שלום", "<|endoftext|>", " "]
DATABASE = "gpt2_exporter_test"


@pytest.fixture
def articles(any_uri):
    with pymongo.MongoClient(any_uri) as client:
        client.drop_database(DATABASE)
        yield client[DATABASE].articles
        client.drop_database(DATABASE)


@pytest.fixture
def run(any_uri, make_context, export):
    """Exports the articles, each time in a new job."""
    numbers = itertools.count()

    def run(request_fields=None, settings=None, **source):
        request = pb.ExportCorpusRequest(
            source=pb.MongoSource(database=DATABASE, collections=["articles"], **source), **(request_fields or {})
        )
        job_id = f"job-{next(numbers)}"
        return export(request, make_context(job_id, mongodb_uri=SecretStr(any_uri), **(settings or {})))

    return run


def test_texts_come_unchanged_in_the_order_of_ids(articles, run):
    ids = articles.insert_many([{"text": text} for text in TEXTS]).inserted_ids
    corpus = run()
    assert [row["id"] for row in corpus.rows] == [str(identifier) for identifier in ids]
    assert corpus.texts == TEXTS


def test_ids_of_strings_and_object_ids_are_all_read(articles, run):
    articles.insert_many([{"_id": identifier, "text": str(identifier)} for identifier in ("b", ObjectId(), "a")])
    assert len(set(run().texts)) == 3


def test_an_object_id_between_strings_is_read(articles, run):
    articles.insert_many([{"_id": identifier, "text": str(identifier)} for identifier in ("2020", ObjectId(), "zz")])
    assert len(run().texts) == 3


# Types that the embedded server can hold, and others.
MIXED = [ObjectId(), "b", "Z", "é", *(Binary(bytes([n * 37 % 251] * 16), 4) for n in range(1, 9)), datetime(2020, 1, 1)]
MORE = [9, 10, -1, 2.5, 2**40, Decimal128("9.75"), Timestamp(1, 2), True]


@pytest.mark.parametrize("identifiers", [MIXED, MIXED + MORE], ids=["common", "all"])
def test_ids_of_many_types_are_all_read_or_the_server_is_refused(articles, run, identifiers):
    held = []
    for identifier in identifiers:
        # Neither stand-in holds every type; FerretDB closes the connection on a Decimal128.
        with suppress(WriteError, AutoReconnect):
            articles.insert_one({"_id": identifier, "text": str(identifier)})
            held.append(str(identifier))
    assert len(held) >= len(MIXED)
    with suppress(FailedPrecondition):
        assert sorted(run().texts) == sorted(held)


def test_what_a_path_meets_is_counted_by_reason(articles, run):
    bodies = [{"text": "good"}, [{"text": "a"}], {"text": ["a"]}, {"text": None}, {"text": ""}, {}, None, "a", 5]
    articles.insert_many([*({"body": body} for body in bodies), {}])
    corpus = run({"max_rejected": -1}, text_field="body.text")
    assert corpus.texts == ["good"]
    reasons = {"text missing": 5, IN_LIST: 2, "text null": 1, "text empty": 1}
    assert corpus.summary["rejected_by_reason"] == reasons


def test_a_document_near_the_largest_is_read(articles, run):
    large = "ü" * (7 << 20)
    articles.insert_many([{"text": "first"}, {"text": large}, {"text": "last"}])
    assert run().texts == ["first", large, "last"]


def test_a_filter_a_nested_text_and_unusable_documents(articles, run):
    articles.insert_many([{"body": {"text": str(n)}, "n": n} for n in range(8)])
    articles.insert_many([{"n": 1}, {"body": {"text": None}, "n": 1}, {"body": {"text": ["a"]}, "n": 1}])
    corpus = run({"max_rejected": 3}, text_field="body.text", filter='{"n": {"$lt": 5}}')
    assert corpus.texts == ["0", "1", "2", "3", "4"]
    assert corpus.summary["rejected_by_reason"] == {"text missing": 1, IN_LIST: 1, "text null": 1}


@pytest.mark.parametrize("projection", ["", '{"sections": 1}', '{"title": 0}'])
def test_texts_of_lists_are_joined_by_the_list_separator(articles, run, projection):
    sections = [{"body": "a", "n": 1}, {"n": 2}, {"body": ["b", "c"]}]
    articles.insert_many([{"sections": sections, "title": "T"}, {"sections": {"body": "d"}}, {"sections": []}])
    with pytest.raises(FailedPrecondition, match=r"2 text in a list, but list_separator is not set.*source.list_sep"):
        run(text_field="sections.body", projection=projection)
    corpus = run({"max_rejected": 1}, text_field="sections.body", list_separator="\n\n", projection=projection)
    assert corpus.texts == ["a\n\nb\n\nc", "d"]
    assert corpus.summary["rejected_by_reason"] == {"text empty": 1}


def test_dates_in_a_filter_are_compared_as_dates(articles, run):
    articles.insert_many([{"text": str(year), "day": datetime(year, 1, 1, tzinfo=UTC)} for year in (1969, 1999, 2024)])
    assert run(filter='{"day": {"$gte": {"$date": "1970-01-01T00:00:00Z"}}}').texts == ["1999", "2024"]
    assert run(filter='{"day": {"$lt": {"$date": {"$numberLong": "-1"}}}}').texts == ["1969"]


def test_a_title_goes_into_the_template_and_a_document_without_one_is_its_text(articles, run):
    articles.insert_many(
        [{"text": "a", "title": "T"}, {"text": "b"}, {"text": "c", "title": 5}, {"text": "d", "title": ""}]
    )
    assert run(title_field="title").texts == ["T\n\na", "b", "c", "d"]
    assert run(title_field="title", template="{{{text}}} {title}").texts == ["{a} T", "b", "c", "d"]


def test_a_projection_of_the_request_is_the_servers(articles, run):
    articles.insert_many([{"text": "a", "title": "T", "big": "x"}])
    assert run(projection='{"text": 1}').texts == ["a"]
    assert run(projection='{"big": 0}', title_field="title").texts == ["T\n\na"]


def test_a_limit_reads_the_first_documents(articles, run):
    articles.insert_many([{"text": str(n)} if n != 1 else {} for n in range(2500)])
    corpus = run({"max_rejected": 1}, limit=1203)
    assert corpus.texts == [str(n) for n in range(1203) if n != 1]


def test_only_what_is_new_since_a_corpus_is_exported(articles, run):
    articles.insert_many([{"text": f"old {n}"} for n in range(3)])
    old = run()
    with pytest.raises(FailedPrecondition, match="no document is newer"):
        run({"since_corpus_uri": old.folder.as_uri()})
    articles.insert_many([{"text": f"new {n}"} for n in range(3)])
    new = run({"since_corpus_uri": old.folder.as_uri()})
    assert new.texts == ["new 0", "new 1", "new 2"]
    assert [parent["digest"] for parent in new.manifest["parents"]] == [old.digest]
    with pytest.raises(FailedPrecondition, match=r"was not exported from this source.*leave the field out"):
        run({"since_corpus_uri": old.folder.as_uri()}, filter='{"text": "old 1"}')


def test_limited_exports_continue_one_another(articles, run):
    articles.insert_many([{"text": str(n)} for n in range(5)])
    first = run(limit=2)
    second = run({"since_corpus_uri": first.folder.as_uri()}, limit=2)
    third = run({"since_corpus_uri": second.folder.as_uri()})
    assert [*first.texts, *second.texts, *third.texts] == ["0", "1", "2", "3", "4"]


def test_a_snapshot_leaves_out_what_came_later(articles, run, any_uri, settings):
    articles.insert_one({"text": "old"})
    source = pb.MongoSource(database=DATABASE, collections=["articles"])
    with connect(settings.model_copy(update={"mongodb_uri": SecretStr(any_uri)}), "") as server:
        token = take_snapshot(server, source).token()
        assert take_snapshot(server, source).token() == token
    articles.insert_one({"text": "new"})
    assert run({"snapshot": token}).texts == ["old"]


@pytest.mark.parametrize("preference", list(pb.ReadPreference.values()))
def test_a_standalone_server_is_read_with_any_read_preference(articles, run, preference):
    articles.insert_one({"text": "a"})
    assert run(read_preference=preference).texts == ["a"]


def test_how_many_readers_there_are_does_not_change_the_corpus(articles, run, monkeypatch):
    ids = articles.insert_many([{"text": f"{n} " * 20} for n in range(2000)]).inserted_ids
    # Where MongoDB itself would take a random sample; the other servers cannot.
    monkeypatch.setattr("gpt2_exporter.mongo.ranges._MIN_DOCUMENTS_TO_CUT", 10)
    monkeypatch.setattr("gpt2_exporter.mongo.ranges._jumps_into_index", lambda _: True)
    monkeypatch.setattr("gpt2_exporter.mongo.ranges._sample", lambda *_: [ids[0], *ids[5::97], ids[-1]])
    one, four = (run(settings={"mongodb_readers": readers, "corpus_shard_bytes": 20_000}) for readers in (1, 4))
    assert one.texts == four.texts
    assert one.digest == four.digest


def test_a_server_killed_and_started_again_costs_no_document(own_server, make_context, progress, export, monkeypatch):
    # A fast machine exports all of it in less time than there is between two reports.
    monkeypatch.setattr("gpt2_common.jobs.context._REPORT_SECONDS", 0.0)
    with pymongo.MongoClient(own_server.uri) as client:
        documents = [{"text": f"{n:05d} " + "x" * 300} for n in range(20_000)]
        client.news.articles.insert_many(documents)
    restarts = []

    def restart(reported):
        if reported.done and not restarts:
            restarts.append(reported.done)
            own_server.kill()
            own_server.start()

    progress.on_progress = restart
    request = pb.ExportCorpusRequest(source=pb.MongoSource(database="news", collections=["articles"]))
    corpus = export(request, make_context(mongodb_uri=SecretStr(own_server.uri), mongodb_timeout_seconds=20))
    assert restarts[0] < len(documents)
    assert corpus.texts == [document["text"] for document in documents]
