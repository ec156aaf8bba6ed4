"""An export has every document once, or fails with the reason, whatever servers and concurrent writers do."""

import itertools
import random
import threading
import uuid
from contextlib import contextmanager, suppress
from datetime import UTC, datetime

import pymongo
import pytest
from bson import Binary, Decimal128, Int64, MaxKey, MinKey, ObjectId, Timestamp
from pydantic import SecretStr
from pymongo.errors import AutoReconnect, OperationFailure, WriteError

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_common.errors import DataLoss, FailedPrecondition, PipelineError
from gpt2_exporter.mongo.connection import connect
from gpt2_exporter.mongo.snapshot import take_snapshot
from gpt2_orchestration.stack.mongodb.commands import Commands
from gpt2_orchestration.stack.mongodb.order import sort_key
from gpt2_orchestration.stack.mongodb.store import Store
from gpt2_orchestration.stack.mongodb.wire import WireServer

pytestmark = pytest.mark.process

NAMES = ["select", "a-b", "a.b", "two words", "Ærø", "1", "order by"]
KINDS = [
    lambda n: n,
    lambda n: Int64(2**40 + n),
    lambda n: n + 0.5,
    str,
    lambda n: f"{n:024x}",
    lambda n: {"k": n},
    lambda n: {"k": str(n), "l": {"m": n}},
    lambda n: Binary(n.to_bytes(16, "big"), 4),
    lambda n: ObjectId(n.to_bytes(12, "big")),
    lambda n: datetime.fromtimestamp(n, UTC),
    lambda n: n % 2 == 0,
    lambda n: Timestamp(n, 1),
    lambda n: Decimal128(f"{n}.25"),
    lambda _: None,
    lambda _: float("nan"),
    lambda _: MinKey(),
    lambda _: MaxKey(),
]


def ask(collections=("articles",), database="proof", **fields):
    return pb.ExportCorpusRequest(source=pb.MongoSource(database=database, collections=collections), **fields)


@pytest.fixture
def run(make_context, export):
    """Exports from a server, each time in a new job."""
    numbers = itertools.count()

    def run(uri, request, job_id="", **settings):
        job_id = job_id or f"job-{next(numbers)}"
        return export(request, make_context(job_id, mongodb_uri=SecretStr(uri), **settings))

    return run


def fill(collection, chance, kinds):
    """Inserts documents whose ids are of some types, as far as the server holds them; their texts."""
    numbers = chance.sample(range(1, 100_000), chance.randint(1, 60))
    texts = []
    for number in numbers:
        # FerretDB closes the connection on what it does not hold; a bool can be there already.
        with suppress(WriteError, AutoReconnect):
            collection.insert_one({"_id": chance.choice(kinds)(number), "text": str(number)})
            texts.append(str(number))
    return texts


def test_ids_of_mixed_types_are_exported_once_each_whatever_the_collection_is_called(any_uri, run):
    chance = random.Random(18)
    with pymongo.MongoClient(any_uri) as client:
        for name in NAMES:
            client.drop_database("proof")
            texts = fill(client.proof[name], chance, chance.sample(KINDS[:-5], chance.randint(1, 6)) + KINDS[-4:-3])
            corpus = run(any_uri, ask([name]))
            assert sorted(corpus.texts) == sorted(texts)
            assert len({row["id"] for row in corpus.rows}) == len(texts)
        client.drop_database("proof")


def test_ids_of_all_types_are_exported_once_each_from_the_embedded_server(mongo, mongo_port, run):
    chance = random.Random(27017)
    for _ in range(10):
        mongo.drop_database("proof")
        texts = fill(mongo.proof.articles, chance, KINDS)
        corpus = run(f"mongodb://127.0.0.1:{mongo_port}", ask(), mongodb_readers=chance.randint(1, 3))
        assert sorted(corpus.texts) == sorted(texts)
        assert len({row["id"] for row in corpus.rows}) == len(texts)


@pytest.mark.parametrize("identifiers", [[1, {"k": 1}, "z"], [{"k": 1}, {"k": 2}]])
def test_a_server_that_does_not_find_ids_of_some_type_fails_the_export(lying_uri, run, identifiers):
    with pymongo.MongoClient(lying_uri) as client:
        client.drop_database("proof")
        client.proof.articles.insert_many([{"_id": identifier, "text": "a"} for identifier in identifiers])
        with pytest.raises(PipelineError, match=r"proof\.articles.*(MongoDB|server)"):
            run(lying_uri, ask())


def test_a_server_that_confuses_ids_never_gives_a_corpus_that_lacks_or_doubles_some(lying_uri, run):
    chance = random.Random(1)
    with pymongo.MongoClient(lying_uri) as client:
        for _ in range(20):
            client.drop_database("proof")
            texts = fill(client.proof.articles, chance, chance.sample(KINDS[:10], 3))
            with suppress(PipelineError, OperationFailure):
                assert sorted(run(lying_uri, ask()).texts) == sorted(texts)


class Forgetful(Commands):
    """The embedded server; but what is read in the order of `_id` lacks some documents or holds some twice."""

    lost: frozenset[bytes] = frozenset()
    doubled: frozenset[bytes] = frozenset()

    def matching(self, number, query, sort):
        for stored in super().matching(number, query, sort):
            if not sort or stored.key not in self.lost:
                yield stored
            if sort and stored.key in self.doubled:
                yield stored


@contextmanager
def serving(commands):
    with WireServer(("127.0.0.1", 0), commands.answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"mongodb://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def forgetful(tmp_path):
    """A server with 5,000 documents whose ids are their numbers; and a client."""
    store = Store(tmp_path / "forgetful")
    commands = Forgetful(store)
    with serving(commands) as uri, pymongo.MongoClient(uri) as client:
        client.proof.articles.insert_many([{"_id": n, "text": f"{n} " + "x" * 100, "n": n} for n in range(5000)])
        commands.uri, commands.articles = uri, client.proof.articles
        yield commands
    store.close()


@pytest.mark.parametrize("source", [{}, {"filter": '{"n": {"$lt": 4000}}'}, {"limit": 3000}])
def test_a_document_that_the_server_counts_but_does_not_return_fails_the_export(forgetful, run, source):
    forgetful.lost = frozenset({sort_key(1234)})
    request = ask()
    request.source.MergeFrom(pb.MongoSource(**source))
    with pytest.raises(DataLoss, match=r"proof\.articles: the server returned \d+ of \d+ documents"):
        run(forgetful.uri, request)
    forgetful.lost = frozenset()
    assert len(run(forgetful.uri, request).texts) == (source.get("limit") or (4000 if source else 5000))


@pytest.mark.parametrize("readers", [1, 3])
def test_a_document_that_the_server_returns_twice_fails_the_export(forgetful, run, readers):
    forgetful.doubled = frozenset({sort_key(1234)})
    with pytest.raises(FailedPrecondition, match=r"_ids of proof\.articles in their order"):
        run(forgetful.uri, ask(), mongodb_readers=readers)


def test_a_loss_that_a_doubled_document_makes_up_for_fails_the_export(forgetful, run):
    forgetful.lost, forgetful.doubled = frozenset({sort_key(1234)}), frozenset({sort_key(4321)})
    with pytest.raises(PipelineError):
        run(forgetful.uri, ask())


def test_a_document_lost_in_one_attempt_fails_the_next_one_that_resumes(forgetful, run):
    forgetful.lost = frozenset({sort_key(10)})
    forgetful.articles.update_one({"_id": 3000}, {"$unset": {"text": 1}})
    with pytest.raises(FailedPrecondition, match="1 text missing"):
        run(forgetful.uri, ask(), job_id="killed", corpus_shard_bytes=100_000)
    forgetful.lost = frozenset()
    forgetful.articles.update_one({"_id": 3000}, {"$set": {"text": "mended"}})
    with pytest.raises(DataLoss, match="returned 4999 of 5000"):
        run(forgetful.uri, ask(), job_id="killed", corpus_shard_bytes=100_000)
    # What was finished is not relied on again.
    assert len(run(forgetful.uri, ask(), job_id="killed", corpus_shard_bytes=100_000).texts) == 5000


def test_a_document_lost_of_those_that_are_new_fails_the_export(forgetful, run):
    old = run(forgetful.uri, ask())
    forgetful.articles.insert_many([{"_id": n, "text": str(n)} for n in range(5000, 5100)])
    since = {"since_corpus_uri": old.folder.as_uri()}
    forgetful.lost = frozenset({sort_key(5050)})
    with pytest.raises(DataLoss, match="returned 99 of 100"):
        run(forgetful.uri, ask(**since))
    forgetful.lost = frozenset()
    assert run(forgetful.uri, ask(**since)).texts == [str(n) for n in range(5000, 5100)]


def once(progress, change):
    """Calls a function at the first documents read."""
    done = []

    def on_progress(reported):
        if reported.done and not done:
            done.append(reported.done)
            change()

    progress.on_progress = on_progress


@pytest.mark.parametrize("readers", [1, 3])
def test_documents_deleted_while_it_runs_do_not_fail_an_export(forgetful, run, progress, readers):
    once(progress, lambda: forgetful.articles.delete_many({"_id": {"$in": [1, *range(4900, 4990)]}}))
    texts = run(forgetful.uri, ask(), mongodb_readers=readers).texts
    assert 4909 <= len(texts) <= 5000


def test_documents_added_under_smaller_ids_while_it_runs_do_not_fail_an_export(forgetful, run, progress):
    once(progress, lambda: forgetful.articles.insert_many([{"_id": -n, "text": "late"} for n in range(1, 50)]))
    assert len(run(forgetful.uri, ask()).texts) == 5000


def test_documents_deleted_since_an_explicit_snapshot_do_not_fail_an_export(forgetful, run, settings):
    with connect(settings.model_copy(update={"mongodb_uri": SecretStr(forgetful.uri)}), "") as server:
        token = take_snapshot(server, ask().source).token()
    forgetful.articles.delete_many({"_id": {"$lt": 100}})
    forgetful.articles.insert_many([{"_id": n, "text": "new"} for n in range(6000, 6500)])
    assert len(run(forgetful.uri, ask(snapshot=token)).texts) == 4900


def test_random_ids_of_a_live_collection_do_not_fail_an_export(mongo, mongo_port, run, progress):
    mongo.proof.articles.insert_many([{"_id": str(uuid.uuid4()), "text": str(n)} for n in range(3000)])
    once(progress, lambda: mongo.proof.articles.insert_many([{"_id": str(uuid.uuid4())} for _ in range(50)]))
    assert len(run(f"mongodb://127.0.0.1:{mongo_port}", ask(max_rejected=50)).texts) == 3000
