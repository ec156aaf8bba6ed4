"""`gpt2 runs` and `gpt2 events`, as processes, on runs that events drive."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2.exporter.v1.exporter_service_pb2 import ImportFilesRequest
from gpt2.jobs.v1.job_pb2 import JobOptions, RunPlan
from gpt2_orchestration.client import connect

GPT2 = Path(sys.executable).with_name("gpt2")


@pytest.fixture
def environment(stack):
    addresses = {f"GPT2_{service.upper()}_ADDRESS": address for service, address in stack.client.addresses.items()}
    return {**os.environ, **addresses, "GPT2_KAFKA_BOOTSTRAP_SERVERS": stack.addresses.kafka_bootstrap_servers}


@pytest.fixture
def gpt2(environment):
    """Runs a command. Returns its exit status and its output, read as JSON where it asks for that."""

    def run(*arguments: str, **options):
        result = subprocess.run([GPT2, *arguments], env=environment, stdout=subprocess.PIPE, text=True, timeout=180)
        assert result.returncode in (0, 1)
        return result.returncode, json.loads(result.stdout) if "--json" in arguments else result.stdout

    return run


def start(stack, run_id: str, vocabulary_size: int) -> None:
    """A run of two stages; a vocabulary that is too small makes the second fail."""
    texts = stack.folder.parent / "runs"
    texts.mkdir(exist_ok=True)
    (texts / "licence.txt").write_text((Path(__file__).parents[2] / "LICENSE").read_text())
    plan = RunPlan()
    plan.stages.add(start="TrainTokenizer").request.update({"vocabulary_size": vocabulary_size})
    request = ImportFilesRequest(uris=[str(texts)], job=JobOptions(run_id=run_id, plan=plan))
    with connect("exporter", stack.client) as client:
        client.call("ImportFiles", request)


def test_a_run_is_watched_to_its_end_and_services_and_events_agree_on_it(stack, gpt2):
    start(stack, "watched", 300)
    status, lines = gpt2("runs", "watch", "watched")
    assert status == 0
    assert [line.split()[0] for line in lines.splitlines() if line.endswith(" succeeded")] == [
        "watched/import-files",
        "watched/train-tokenizer",
    ]
    _, shown = gpt2("runs", "show", "watched", "--json")
    _, listed = gpt2("runs", "list", "--json")
    assert shown == next(run for run in listed if run["run_id"] == "watched")
    _, events = gpt2("events", "list", "--run", "watched", "--json")
    told: dict[str, dict] = {}
    for event in events:
        assert event["type"] == "gpt2.events.v1.JobStateChanged"
        told[event["subject"]] = event["message"]["job"]
    # Progress that came with no change of state is in no event.
    assert told == {job["job_id"]: job for job in shown["jobs"]}
    assert len(events) == 6
    assert "queued to running" in gpt2("events", "list")[1]
    status, letters = gpt2("events", "dlq", "list", "--json")
    assert status == 0
    # Other tests put what is no event there.
    assert "watched" not in json.dumps(letters)


def test_watching_a_run_that_fails_exits_with_1(stack, gpt2):
    start(stack, "watched-failing", 1)
    status, lines = gpt2("runs", "watch", "watched-failing")
    assert status == 1
    assert "watched-failing/train-tokenizer failed" in " ".join(lines.split())
    assert gpt2("runs", "show", "watched-failing", "--json")[1]["state"] == "failed"
    assert gpt2("runs", "watch", "no-such-run")[0] == 1


def test_a_terminal_shows_the_run_as_a_table(stack, environment, gpt2):
    start(stack, "watched-in-a-terminal", 300)
    assert gpt2("runs", "watch", "watched-in-a-terminal")[0] == 0
    ours, theirs = pty.openpty()
    process = subprocess.Popen([GPT2, "runs", "watch", "watched-in-a-terminal"], env=environment, stdout=theirs)
    os.close(theirs)
    shown = b""
    # A terminal whose other side has gone says so by an error.
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:
        pass
    os.close(ours)
    assert process.wait(60) == 0
    assert "watched-in-a-terminal: succeeded" in shown.decode()
    assert "━" in shown.decode()
