"""The API of the dashboard, over HTTP."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from gpt2.events.v1 import events_pb2
from gpt2.exporter.v1.exporter_service_pb2 import ImportFilesRequest
from gpt2.jobs.v1 import job_pb2
from gpt2_contracts.events import DEFAULT_TOPIC, dead_letter_topic
from gpt2_orchestration.client.service_client import JobFailed, connect
from gpt2_orchestration.stack.ports import choose_ports
from gpt2_orchestration.stack.readiness import http_answers
from gpt2_orchestration.stack.record import read_record
from gpt2_orchestration.stack.settings import StackFolder

pytestmark = pytest.mark.process

HOSTILE = '<script>alert(1)</script> "quoted" & \u202eturned'
AWAY = {"tokenizer", "trainer", "registry"}


@pytest.fixture(scope="module")
def failed_run(dashboard) -> str:
    """A run of one job, which failed as its file is not there."""
    request = ImportFilesRequest(
        job=job_pb2.JobOptions(job_id="bad/import"), uris=[f"{dashboard.folder}/artifacts/{HOSTILE}.txt"]
    )
    with connect("exporter", dashboard.services) as exporter, pytest.raises(JobFailed):
        exporter.follow(exporter.call("ImportFiles", request).job, lambda _: None)
    return "bad"


def test_runs_are_listed_and_who_is_away_is_said(dashboard, failed_run):
    status, answer = dashboard.get("/api/v1/runs")
    assert status == 200
    [run] = [run for run in answer["runs"] if run["run_id"] == failed_run]
    [job] = run["jobs"]
    assert (run["state"], job["kind"], job["state"], job["attempt"]) == ("failed", "ImportFiles", "failed", 1)
    assert "there is nothing at" in job["error"]
    assert {trouble["service"] for trouble in answer["troubles"]} == AWAY
    assert all("start it" in trouble["message"] for trouble in answer["troubles"])
    assert answer["next"] == ""
    again = dashboard.get(f"/api/v1/runs?id=none&id={failed_run}")[1]["runs"]
    assert [one["run_id"] for one in again] == [failed_run]


def test_a_run_is_shown_with_its_stages_and_no_curves(dashboard, failed_run):
    status, answer = dashboard.get(f"/api/v1/runs/{failed_run}")
    assert status == 200
    assert answer["run"]["jobs"][0]["outputs"] == []
    assert answer["lineage"] == {"nodes": [], "edges": []}
    assert dashboard.get(f"/api/v1/runs/{failed_run}/training") == (200, {"trainings": []})


@pytest.mark.parametrize(
    ("path", "status", "code", "message"),
    [
        ("/api/v1/runs?limit=0", 400, "INVALID_ARGUMENT", "limit: must be 1 to"),
        ("/api/v1/runs?limit=many", 400, "INVALID_ARGUMENT", "limit: must be 1 to"),
        ("/api/v1/runs?after=nonsense", 400, "INVALID_ARGUMENT", "page_token: must be"),
        ("/api/v1/models", 503, "UNAVAILABLE", "the registry at"),
        ("/api/v1/models/news/comparison", 400, "INVALID_ARGUMENT", "versions: must be numbers"),
        ("/api/v1/models/news/comparison?versions=1,b", 400, "INVALID_ARGUMENT", "versions: must be numbers"),
        (f"/api/v1/models/news/comparison?versions=1,{10**30}", 400, "INVALID_ARGUMENT", "versions: must be numbers"),
        ("/api/v1/models/news/comparison?versions=1,2", 503, "UNAVAILABLE", "the registry at"),
        ("/api/v1/nothing", 404, "NOT_FOUND", "Not Found"),
    ],
)
def test_an_error_is_one_sentence_with_its_status(dashboard, path, status, code, message):
    found, answer = dashboard.get(path)
    assert (found, answer["error"]["code"]) == (status, code)
    assert message in answer["error"]["message"]


def test_a_change_that_not_every_service_answers_is_an_error(dashboard, failed_run):
    status, answer = dashboard.post(f"/api/v1/runs/{failed_run}/cancel", {"reason": "enough"})
    assert (status, answer["error"]["code"]) == (503, "UNAVAILABLE")
    assert "the tokenizer and the trainer and the registry did not answer" in answer["error"]["message"]


def test_a_refusal_is_the_service_s_own_sentence(dashboard, failed_run):
    status, answer = dashboard.post(f"/api/v1/runs/{failed_run}/cancel", {"reason": "x" * 1001})
    assert (status, answer["error"]["code"]) == (400, "INVALID_ARGUMENT")
    assert answer["error"]["message"].startswith("reason: must have 1,000 characters")


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "the body: "),
        (b"[]", 400, "the body: "),
        (b'{"reason": 1}', 400, "reason: "),
        (b'{"unknown": ""}', 400, "unknown: "),
        (b'{"reason": "' + b"x" * 70_000, 413, "longer than"),
    ],
)
def test_a_wrong_body_is_refused(dashboard, body, status, message):
    found, answer = dashboard.post("/api/v1/runs/bad/cancel", body)
    assert found == status
    assert answer["error"]["message"].startswith(message) or message in answer["error"]["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {"x_gpt2_dashboard": ""},
        {"content_type": "text/plain"},
        {"origin": "http://elsewhere.example"},
        {"origin": "null"},
        {"sec_fetch_site": "cross-site"},
    ],
)
def test_a_change_from_another_site_is_refused(dashboard, headers):
    status, answer = dashboard.post("/api/v1/runs/bad/cancel", {"reason": ""}, **headers)
    assert (status, answer["error"]["code"]) == (403, "FORBIDDEN")


def test_the_page_s_own_origin_is_not(dashboard):
    origin = {"origin": f"http://{dashboard.address}", "sec_fetch_site": "same-origin"}
    status, _ = dashboard.post("/api/v1/dead-letters/replay", {"places": ["0:999999"]}, **origin)
    assert status == 404


@pytest.mark.parametrize("host", ["elsewhere.example", "elsewhere.example:8090", "127.0.0.1.elsewhere.example", ""])
def test_a_foreign_host_name_is_refused(dashboard, host):
    status, answer = dashboard.get("/api/v1/runs", host=host)
    assert (status, answer["error"]["code"]) == (421, "MISDIRECTED")


def test_every_answer_forbids_what_the_page_does_not_need(dashboard):
    for path in ("/", "/app.js", "/api/v1/runs"):
        with urllib.request.urlopen(f"http://{dashboard.address}{path}", timeout=60) as answer:
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["access-control-allow-origin"] is None


def test_health_says_what_to_do(dashboard):
    status, answer = dashboard.get("/api/v1/services")
    assert status == 200
    ok = {service["name"]: service["ok"] for service in answer["services"]}
    assert {name for name, is_ok in ok.items() if is_ok} == {"exporter", "kafka", "tensorboard"}
    assert all("start it" in service["message"] for service in answer["services"] if not service["ok"])


def send_letter(servers: str, value: bytes, reason: str) -> None:
    producer = KafkaProducer(bootstrap_servers=servers, acks="all")
    headers = [("ce_type", b"none.of.Ours"), ("dlq_topic", DEFAULT_TOPIC.encode()), ("dlq_reason", reason.encode())]
    producer.send(dead_letter_topic(DEFAULT_TOPIC), key=b"run", value=value, headers=headers).get(30)
    producer.close()


def test_a_dead_letter_is_shown_in_part_and_sent_again_whole(dashboard):
    value = (HOSTILE * 20_000).encode()[:900_000]
    send_letter(dashboard.kafka, value, HOSTILE)
    status, answer = dashboard.get("/api/v1/dead-letters")
    assert status == 200
    letter = answer["letters"][-1]
    assert (letter["reason"], letter["bytes"], letter["topic"]) == (HOSTILE, 900_000, DEFAULT_TOPIC)
    assert letter["payload"].startswith(HOSTILE)
    assert len(letter["payload"]) < 21_000
    assert dashboard.post("/api/v1/dead-letters/replay", {"places": [letter["place"]]}) == (200, {"sent": 1})
    assert value in values_of(dashboard.kafka, DEFAULT_TOPIC)


def values_of(servers: str, topic: str) -> set[bytes]:
    consumer = KafkaConsumer(bootstrap_servers=servers, group_id=None, auto_offset_reset="earliest")
    partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
    consumer.assign(partitions)
    ends = consumer.end_offsets(partitions)
    values = set()
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        values |= {record.value for records in consumer.poll(1000).values() for record in records}
    consumer.close()
    return values


def test_our_events_are_shown_as_json(dashboard):
    event = events_pb2.ModelLabelChanged(model_name="news", label="staging", version=3)
    producer = KafkaProducer(bootstrap_servers=dashboard.kafka, acks="all")
    headers = [("ce_type", event.DESCRIPTOR.full_name.encode())]
    producer.send(dead_letter_topic(DEFAULT_TOPIC), value=event.SerializeToString(), headers=headers).get(30)
    producer.close()
    letters = dashboard.get("/api/v1/dead-letters")[1]["letters"]
    shown = [json.loads(letter["payload"]) for letter in letters if letter["type"] == event.DESCRIPTOR.full_name]
    assert [item["label"] for item in shown] == ["staging"]


class Stream:
    """The stream of changes, read line by line."""

    def __init__(self, address: str) -> None:
        host, _, port = address.partition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=60)
        self._socket.sendall(f"GET /api/v1/events HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
        self._lines = self._socket.makefile("r", encoding="utf-8")

    def until(self, kind: str, wanted) -> dict:
        """The first change of a kind that is wanted."""
        event = ""
        for line in self._lines:
            name, _, content = line.rstrip("\n").partition(": ")
            event = content if name == "event" else event
            if name == "data" and event == kind and wanted(json.loads(content)):
                return json.loads(content)
        raise AssertionError("the stream has ended")

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def test_it_stops_at_once_without_a_message_while_a_stream_is_open(dashboard):
    port = choose_ports({"dashboard": 0})["dashboard"]
    variables = {"GPT2_DASHBOARD_LISTEN": f"127.0.0.1:{port}", "GPT2_KAFKA_BOOTSTRAP_SERVERS": dashboard.kafka}
    command = [sys.executable, "-m", "gpt2_orchestration.dashboard"]
    with subprocess.Popen(command, env={**os.environ, **variables}, stderr=subprocess.PIPE, text=True) as process:
        while not http_answers(f"127.0.0.1:{port}", "/healthz"):
            assert process.poll() is None
        stream = Stream(f"127.0.0.1:{port}")
        stream.until("troubles", lambda _: True)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        stream.close()
    assert errors == ""


def test_changes_come_as_they_happen(dashboard):
    stream = Stream(dashboard.address)
    try:
        assert {trouble["service"] for trouble in stream.until("troubles", bool)} == AWAY
        request = ImportFilesRequest(
            job=job_pb2.JobOptions(job_id="live/import"), uris=[f"{dashboard.folder}/artifacts/none.txt"]
        )
        with connect("exporter", dashboard.services) as exporter:
            exporter.call("ImportFiles", request)
        job = stream.until("job", lambda job: job["job_id"] == "live/import" and job["state"] == "failed")
        assert "none.txt" in job["error"]

        event = events_pb2.ModelLabelChanged(model_name="news", label="staging", version=3)
        producer = KafkaProducer(bootstrap_servers=dashboard.kafka, acks="all")
        headers = [("ce_type", event.DESCRIPTOR.full_name.encode())]
        producer.send(DEFAULT_TOPIC, value=event.SerializeToString(), headers=headers).get(30)
        producer.send(DEFAULT_TOPIC, value=b"no event", headers=headers).get(30)
        producer.close()
        assert stream.until("label", bool) == {"name": "news", "label": "staging", "version": 3}
    finally:
        stream.close()


def test_it_is_seldom_woken_while_nobody_asks(dashboard):
    record = read_record(StackFolder(dashboard.folder))
    [pid] = [process.identity.pid for process in record.processes if process.name == "dashboard"]
    woken = wake_ups(pid)
    time.sleep(5)
    # 2 to 4 a second; one loop that looks ten times a second, as uvicorn's own does, adds 10.
    assert (wake_ups(pid) - woken) / 5 < 8


def wake_ups(pid: int) -> int:
    """How often the threads of a process that run Python have waited for something."""
    statuses = [
        (task / "status").read_text()
        for task in Path(f"/proc/{pid}/task").iterdir()
        if (task / "comm").read_text().startswith("python")
    ]
    return sum(int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for status in statuses)
