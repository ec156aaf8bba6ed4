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
from gpt2_orchestration.client.service_client import connect

GPT2 = Path(sys.executable).with_name("gpt2")


@pytest.fixture
def environment(stack):
    addresses = {f"GPT2_{service.upper()}_ADDRESS": address for service, address in stack.client.addresses.items()}
    return {**os.environ, **addresses, "GPT2_KAFKA_BOOTSTRAP_SERVERS": stack.addresses.kafka_bootstrap_servers}


@pytest.fixture
def gpt2(environment):
    """Runs a command. Returns its exit status and its output, read as JSON where it asks for that."""

    def run(*arguments: str, **options):
        result = subprocess.run([GPT2, *arguments], env=environment, stdout=subprocess.PIPE, text=True, timeout=600)
        assert result.returncode in (0, 1)
        return result.returncode, json.loads(result.stdout) if "--json" in arguments else result.stdout

    return run


def start(stack, run_id: str, **stages: dict) -> None:
    """A run: files are imported, then come stages, by start call."""
    texts = stack.folder.parent / "runs"
    texts.mkdir(exist_ok=True)
    for number, text in enumerate((Path(__file__).parents[2] / "LICENSE").read_text().split("\n\n")):
        (texts / f"{number}.txt").write_text(text)
    plan = RunPlan()
    for name, content in stages.items():
        plan.stages.add(start=name).request.update(content)
    request = ImportFilesRequest(uris=[str(texts)], job=JobOptions(run_id=run_id, plan=plan))
    with connect("exporter", stack.client) as client:
        client.call("ImportFiles", request)


def test_a_run_is_watched_to_its_end_and_services_and_events_agree_on_it(stack, gpt2):
    start(stack, "watched", TrainTokenizer={"vocabulary_size": 300})
    status, lines = gpt2("runs", "watch", "watched")
    assert status == 0
    assert [line.split()[0] for line in lines.splitlines() if line.endswith(" succeeded")] == [
        "watched/import-files",
        "watched/train-tokenizer",
    ]
    _, shown = gpt2("runs", "show", "watched", "--json")
    _, listed = gpt2("runs", "list", "--json")
    [in_short] = [run for run in listed if run["run_id"] == "watched"]
    assert [
        {name: job[name] for name in short} for job, short in zip(shown["jobs"], in_short["jobs"], strict=True)
    ] == (in_short["jobs"])
    assert {**shown, "jobs": in_short["jobs"], "omitted_jobs": 0} == in_short
    _, events = gpt2("events", "list", "--run", "watched", "--json")
    latest: dict[str, dict] = {}
    for event in events:
        assert event["type"] == "gpt2.events.v1.JobStateChanged"
        latest[event["subject"]] = event["message"]["job"]
    # Progress that came with no change of state is in no event.
    assert latest == {job["job_id"]: job for job in shown["jobs"]}
    assert len(events) == 6
    assert "queued to running" in gpt2("events", "list")[1]
    status, letters = gpt2("events", "dlq", "list", "--json")
    assert status == 0
    # Other tests put what is no event there.
    assert "watched" not in json.dumps(letters)


def test_a_run_that_fails_is_corrected_and_continues(stack, environment, gpt2):
    # What an address leads to is seen when the stage is due.
    nothing = (stack.folder / "artifacts" / "nothing").as_uri()
    start(
        stack,
        "watched-failing",
        TrainTokenizer={"vocabulary_size": 300},
        EncodeCorpus={"tokenizer_uri": nothing, "validation_fraction": 0.5},
    )
    status, lines = gpt2("runs", "watch", "watched-failing")
    assert status == 1
    assert "watched-failing/encode-corpus failed" in " ".join(lines.split())
    failed = gpt2("runs", "show", "watched-failing", "--json")
    assert failed[1]["state"] == "failed"
    assert "gpt2 runs continue watched-failing --set encode_corpus." in gpt2("runs", "show", "watched-failing")[1]
    command = [GPT2, "runs", "continue", "watched-failing", "--set", "encode_corpus.validation_fraction=2"]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert refused.returncode == 2
    assert "encode-corpus.validation_fraction: must be" in refused.stderr
    command = [GPT2, "runs", "continue", "watched-failing", "--set", "publish.label=x", "--set", "encode.engine=x"]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert refused.returncode == 2
    assert "publish: is not a stage of run watched-failing; use one of import-files, train-tokenizer" in refused.stderr
    assert "encode: is not a stage of run watched-failing; did you mean encode-corpus?" in refused.stderr
    assert gpt2("runs", "show", "watched-failing", "--json") == failed
    # Without an address in its request, the stage takes what the stages before it have made.
    assert gpt2("runs", "continue", "watched-failing", "--set", "encode_corpus.tokenizer_uri=null")[0] == 0
    assert gpt2("runs", "watch", "watched-failing")[0] == 0
    assert gpt2("runs", "show", "watched-failing", "--json")[1]["state"] == "succeeded"
    assert gpt2("runs", "watch", "no-such-run")[0] == 1


def test_a_terminal_shows_the_run_as_a_table(stack, environment, gpt2):
    start(stack, "watched-in-a-terminal", TrainTokenizer={"vocabulary_size": 300})
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


def test_a_pipeline_with_mistakes_in_all_services_starts_nothing_and_lists_them_all(stack, environment, gpt2, tmp_path):
    specification = tmp_path / "late.yaml"
    specification.write_text("""
name: late-mistakes
import_files: {uris: ["file:///nowhere-allowed"]}
train_tokenizer: {vocabulary_size: 512}
encode_corpus: {beam_options: ["--runner=DirectRunner"]}
train_model: {model_size: 124M, config: {steps: 5, epochs: 1}}
register_model: {model_name: late-mistakes, label_gate: {must_improve: true}}
""")
    before = gpt2("runs", "list", "--json")
    command = [GPT2, "run", str(specification), "--folder", str(tmp_path / "runs")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    first, *lines = result.stderr.splitlines()
    assert (result.returncode, result.stdout) == (2, "")
    assert first.startswith("gpt2: ")
    places = [line.strip().split(": ")[0] for line in lines]
    assert {"import_files.uris[0]", "encode_corpus.beam_options", "register_model.label"} < set(places)
    assert any(place.startswith("train_model.config") for place in places)
    # Those that the command finds by itself are in one error with them.
    wrong = ["--set", "register_model.labl=staging", "--set", "train_model={model: 1, model_size: 124M, steps: 5}"]
    result = subprocess.run([*command, *wrong], env=environment, capture_output=True, text=True, timeout=600)
    both = [line.strip().split(": ")[0] for line in result.stderr.splitlines()[1:]]
    assert [place for place in both if place not in places] == [
        "train_model.model",
        "train_model.steps",
        "train_model.model_size",
        "train_model.config",
        "register_model.labl",
    ]
    assert set(places) - set(both) == {place for place in places if place.startswith("train_model.config.")}
    assert gpt2("runs", "list", "--json") == before
