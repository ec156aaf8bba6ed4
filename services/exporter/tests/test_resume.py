"""An export whose process is killed, and taken up by another, gives the corpus of one that was not."""

import base64
import gzip
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from google.protobuf import json_format

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.exporter.v1 import exporter_service_pb2 as pb

pytestmark = pytest.mark.process


def spawn(request, function, environment, job_id="job"):
    """Starts a job's process as the service does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2_common.jobs.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    task = {
        "service": "exporter",
        "job_id": job_id,
        "run_id": job_id,
        "attempt": 1,
        "request_digest": "digest",
        "lease_seconds": 600,
        "function": f"gpt2_exporter.jobs:{function}",
        "settings": "gpt2_exporter.settings:ExporterSettings",
        "request_type": f"gpt2.exporter.v1.exporter_service_pb2:{type(request).__name__}",
        "request": base64.b64encode(request.SerializeToString()).decode(),
    }
    process.stdin.write(json.dumps({"task": task}).encode() + b"\n")
    process.stdin.flush()
    return process


def finish(process):
    """Waits for the result; returns its output."""
    messages = [json.loads(line) for line in process.stdout]
    assert process.wait(60) == 0
    [output] = messages[-1]["outputs"]
    return json_format.ParseDict(output, artifact_pb2.Artifact())


def kill_when(process, is_time, wait=0.0):
    deadline = time.monotonic() + 60
    while not is_time():
        assert process.poll() is None, "the job ended before it was to be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(wait)
    process.kill()
    process.wait(30)
    process.stdout.close()
    process.stdin.close()


def shards_finished(settings, job_id="job"):
    state = Path(settings.artifact_root.removeprefix("file://")) / job_id / ".work" / "export.json"
    return json.loads(state.read_text())["shards"] if state.exists() else 0


@pytest.fixture
def slow_environment(child_environment):
    return {**child_environment, "GPT2_CORPUS_SHARD_BYTES": "100000"}


def run_killed(request, function, environment, settings, kills):
    for number in range(1, kills + 1):
        process = spawn(request, function, environment)
        kill_when(process, lambda number=number: shards_finished(settings) >= 3 * number)
    return finish(spawn(request, function, environment))


def test_an_export_killed_twice_has_the_digest_of_one_that_was_not(mongo, settings, slow_environment, open_corpus):
    documents = [{"text": f"{n:05d} " + "ä" * 500} for n in range(6000)]
    for n in range(0, 6000, 100):
        documents[n] = {"n": n}
    mongo.news.articles.insert_many(documents)
    request = pb.ExportCorpusRequest(source=pb.MongoSource(database="news", collections=["articles"]), max_rejected=-1)
    killed = open_corpus(run_killed(request, "export_corpus", slow_environment, settings, 2))
    whole = open_corpus(finish(spawn(request, "export_corpus", slow_environment, "other")))
    assert killed.texts == [document["text"] for document in documents if "text" in document]
    assert killed.counts["rejected"] == 60
    assert killed.digest == whole.digest


def test_documents_added_while_it_was_down_stay_out(mongo, settings, slow_environment, open_corpus):
    mongo.news.articles.insert_many([{"text": "x" * 1000} for _ in range(4000)])
    request = pb.ExportCorpusRequest(source=pb.MongoSource(database="news", collections=["articles"]))
    process = spawn(request, "export_corpus", slow_environment)
    kill_when(process, lambda: shards_finished(settings) >= 1)
    mongo.news.articles.insert_one({"text": "new"})
    corpus = open_corpus(finish(spawn(request, "export_corpus", slow_environment)))
    assert corpus.counts["documents"] == 4000


def test_an_import_killed_twice_has_the_digest_of_one_that_was_not(settings, tmp_path, slow_environment, open_corpus):
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = [json.dumps({"text": f"{n:06d} " + "é" * 300}) for n in range(12000)]
    (folder / "a.jsonl").write_text("\n".join([*lines[:7000], "no json"]))
    (folder / "b.jsonl").write_text("\n".join(lines[7000:]))
    (folder / "c.txt").write_text("last")
    request = pb.ImportFilesRequest(uris=[folder.as_uri()], max_rejected=1)
    killed = open_corpus(run_killed(request, "import_files", slow_environment, settings, 2))
    whole = open_corpus(finish(spawn(request, "import_files", slow_environment, "other")))
    assert killed.texts == [json.loads(line)["text"] for line in lines] + ["last"]
    assert killed.counts["rejected"] == 1
    assert killed.digest == whole.digest


def run_killed_at_random(request, function, environment, settings, kills):
    """Kills the job's process so many times, each time a few shards and a random moment further on."""
    chance = random.Random(20)
    for _ in range(kills):
        aim = shards_finished(settings) + chance.randint(1, 6)
        process = spawn(request, function, environment)
        kill_when(process, lambda aim=aim: shards_finished(settings) >= aim, chance.random() * 0.01)
    return finish(spawn(request, function, environment))


OPTIONS = pb.DocumentOptions(drop_duplicates=True, normalization=pb.NORMALIZATION_NFC, min_characters=3)


@pytest.mark.exhaustive
def test_an_export_killed_20_times_at_random_has_the_digest_of_one_that_was_not(
    mongo, settings, child_environment, open_corpus
):
    documents = [{"text": f"{n % 5500:05d} " + "a\u0308" * 300} if n % 50 else {} for n in range(6000)]
    mongo.news.articles.insert_many(documents)
    source = pb.MongoSource(database="news", collections=["articles"])
    request = pb.ExportCorpusRequest(source=source, max_rejected=-1, documents=OPTIONS)
    environment = {**child_environment, "GPT2_CORPUS_SHARD_BYTES": "8000"}
    killed = open_corpus(run_killed_at_random(request, "export_corpus", environment, settings, 20))
    whole = open_corpus(finish(spawn(request, "export_corpus", environment, "other")))
    assert killed.digest == whole.digest
    assert killed.summary["filtered_by_reason"] == {"duplicate": 490}


@pytest.mark.exhaustive
def test_an_import_killed_20_times_at_random_has_the_digest_of_one_that_was_not(
    settings, tmp_path, child_environment, open_corpus
):
    folder = tmp_path / "texts"
    folder.mkdir()
    lines = [json.dumps({"text": f"{n % 9000:06d} " + "é" * 200}) for n in range(10_000)]
    (folder / "a.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    (folder / "b.csv").write_text("text\n" + "".join(f'"{n}\nrow"\n' for n in range(3000)))
    request = pb.ImportFilesRequest(uris=[folder.as_uri()], documents=OPTIONS)
    environment = {**child_environment, "GPT2_CORPUS_SHARD_BYTES": "8000"}
    killed = open_corpus(run_killed_at_random(request, "import_files", environment, settings, 20))
    whole = open_corpus(finish(spawn(request, "import_files", environment, "other")))
    assert killed.digest == whole.digest
    assert killed.counts["documents"] == 12_000


def fail(*_):
    raise OSError("the process was killed")


def test_rejects_after_the_last_document_count_once_where_only_the_commit_is_repeated(
    mongo, make_context, export, tmp_path, monkeypatch
):
    mongo.news.articles.insert_many([{"text": "a"}, {"n": 1}])
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text('{"text": "a"}\nno json\n')
    source = pb.MongoSource(database="news", collections=["articles"])
    requests = {
        "export": pb.ExportCorpusRequest(source=source, max_rejected=1),
        "import": pb.ImportFilesRequest(uris=[(tmp_path / "texts").as_uri()], max_rejected=1),
    }
    for job_id, request in requests.items():
        with monkeypatch.context() as patch:
            patch.setattr("gpt2_exporter.corpus.pipeline._write_reports", fail)
            with pytest.raises(OSError, match="killed"):
                export(request, make_context(job_id))
        corpus = export(request, make_context(job_id, attempt=2))
        assert (corpus.texts, corpus.counts["rejected"], len(corpus.rejects)) == (["a"], 1, 1)
