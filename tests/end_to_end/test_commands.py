"""The commands of `gpt2` that ask the services, as processes, against the running stack and a model that it made."""

import json
import math
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from pymongo import MongoClient

from gpt2.exporter.v1.exporter_service_pb2 import ImportFilesRequest
from gpt2.jobs.v1.job_pb2 import JobOptions
from gpt2.registry.v1.registry_service_pb2 import RegisterModelRequest
from gpt2.tokenizer.v1.tokenizer_service_pb2 import EncodeCorpusRequest, TrainTokenizerRequest
from gpt2.trainer.v1.trainer_service_pb2 import ExportModelRequest, ModelConfig, TrainConfig, TrainModelRequest
from gpt2_catalogue import catalogue
from gpt2_orchestration.client.service_client import connect

GPT2 = Path(sys.executable).with_name("gpt2")
NAME = "commanded"


@pytest.fixture(scope="module")
def model(stack) -> str:
    """URI of a small model that is registered twice as `commanded`."""
    texts = stack.folder.parent / NAME
    texts.mkdir()
    for number, paragraph in enumerate((Path(__file__).parents[2] / "LICENSE").read_text().split("\n\n")):
        (texts / f"{number}.txt").write_text(paragraph)

    def run(start, request):
        with connect(catalogue().stages[start].service, stack.client) as client:
            job = client.follow(client.start(start, request), lambda _: None)
        return {output.name: output.uri for output in job.outputs}

    corpus = run("ImportFiles", ImportFilesRequest(uris=[texts.as_uri()]))["corpus"]
    tokenizer = run("TrainTokenizer", TrainTokenizerRequest(corpus_uri=corpus, vocabulary_size=300))["tokenizer"]
    encode = EncodeCorpusRequest(corpus_uri=corpus, tokenizer_uri=tokenizer, validation_fraction=0.2)
    train = TrainModelRequest(
        dataset_uri=run("EncodeCorpus", encode)["dataset"],
        model=ModelConfig(n_layer=1, n_head=2, n_embd=16, n_ctx=16),
        config=TrainConfig(steps=2, batch_size=4, sample_length=8),
    )
    checkpoint = run("TrainModel", train)["checkpoint"]
    made = run("ExportModel", ExportModelRequest(checkpoint_uri=checkpoint))["model"]
    for number in (1, 2):
        job = JobOptions(job_id=f"{NAME}/register-{number}")
        run("RegisterModel", RegisterModelRequest(job=job, model_uri=made, model_name=NAME))
    return made


@pytest.fixture
def gpt2(stack, model, tmp_path):
    """Runs a command. Returns its output, read as JSON where it asks for that."""
    addresses = {f"GPT2_{service.upper()}_ADDRESS": address for service, address in stack.client.addresses.items()}

    def run(*arguments: str, status: int = 0, **options):
        environment = {**os.environ, **addresses}
        result = subprocess.run(
            [GPT2, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, **options
        )
        assert result.returncode == status, result.stderr
        assert "Traceback" not in result.stderr
        if status:
            return result.stderr
        return json.loads(result.stdout) if "--json" in arguments else result.stdout

    run.addresses = addresses
    return run


def test_models(gpt2):
    assert NAME in gpt2("models", "list")
    listed = {item["model_name"]: item for item in gpt2("models", "list", "--json")}
    assert listed[NAME]["latest_version"] == "2"
    assert "version 1" in gpt2("models", "label", NAME, "staging", "1", "--reason", "[bold]first")
    moved = gpt2("models", "label", NAME, "staging", "2", "--actor", "ann", "--json")
    assert (moved["previous_version"], moved["model_version"]["labels"]) == ("1", ["staging"])
    assert gpt2("models", "show", f"{NAME}@staging", "--json")["version"] == "2"
    assert gpt2("models", "show", f"models:/{NAME}/1", "--json")["version"] == "1"
    assert "gpt2.model_digest" in gpt2("models", "show", NAME)
    assert [item["version"] for item in gpt2("models", "list", NAME, "--json")] == ["2", "1"]

    compared = gpt2("models", "compare", NAME, "1", "2", "--prompt", "The licence", "--json")
    assert {row["name"] for row in compared["metrics"]} >= {"validation_loss"}
    assert compared["parameters"] == []
    [first, second] = compared["continuations"]["The licence"]
    assert first == second != ""
    assert "dataset_digest" in gpt2("models", "compare", NAME, "1", "2", "--samples")

    assert "none (before: version 2)" in gpt2("models", "label", NAME, "staging", "--clear")
    assert [item["version"] for item in gpt2("models", "history", NAME, "--json")] == ["0", "2", "1"]
    # What looks like markup is shown as it is.
    assert "[bold]first" in gpt2("models", "history", NAME, "--label", "staging")
    assert "no version 9" in gpt2("models", "show", f"{NAME}/9", status=1)


def test_stages_by_hand(gpt2, stack, model):
    texts = str(stack.folder.parent / NAME)
    corpus = gpt2("export", "--files", texts, "--run", "by-hand", "--json")["outputs"]["corpus"]
    # The same run has the same job.
    assert gpt2("export", "--files", texts, "--run", "by-hand") == f"corpus\t{corpus}\n"

    encoded = gpt2("tokenize", corpus, "--vocabulary-size", "280", "--validation-fraction", "0.3", "--json")
    assert [job["kind"] for job in encoded["jobs"]] == ["TrainTokenizer", "EncodeCorpus"]
    dataset = encoded["outputs"]["dataset"]
    again = gpt2(
        "tokenize", corpus, "--tokenizer", encoded["outputs"]["tokenizer"], "--set", "validation_fraction=0.3", "--json"
    )
    assert [job["kind"] for job in again["jobs"]] == ["EncodeCorpus"]
    imported = gpt2("tokenize", corpus, "--import", model, "--validation-fraction", "0.3", "--json")["outputs"]
    assert set(imported) == {"tokenizer", "dataset"}

    options = ("--steps", "2", "--batch-size", "4", "--set", "config.sample_length=8", "--json")
    size = "n_layer=1,n_head=2,n_embd=16,n_ctx=16"
    trained = gpt2("train", dataset, "--size", size, *options)["outputs"]
    assert set(trained) == {"checkpoint", "logs", "samples"}
    tuned = gpt2(
        "train", dataset, "--checkpoint", trained["checkpoint"], "--register", "by-hand", "--label", "draft", *options
    )
    assert [job["kind"] for job in tuned["jobs"]] == ["TrainModel", "ExportModel", "RegisterModel"]
    assert gpt2("models", "show", "by-hand@draft", "--json")["version"] == "1"
    assert "allowed roots" in gpt2("export", "--files", "/etc", status=2)


def test_files_as_other_tools_write_them(gpt2, stack):
    folder = stack.folder.parent / "other-tools"
    folder.mkdir()
    (folder / "a.csv").write_bytes("1;Größe\n2;Maß\n".encode("cp1252"))
    (folder / "a.pdf").write_text("no text")
    options = ("--encoding", "cp1252", "--csv-delimiter", ";", "--no-csv-header", "--field", "2", "--json")
    [job] = gpt2("export", "--files", str(folder), *options)["jobs"]
    assert job["outputs"][0]["counts"]["documents"] == 2
    assert job["warnings"] == ["passed over: 1 file of other types (.pdf 1)"]
    assert "set csv_delimiter to ';'" in gpt2("export", "--files", f"{folder}/a.csv", "--field", "1", status=1)


def test_documents_come_from_mongodb(gpt2, stack):
    with MongoClient(stack.addresses.mongodb_uri) as client:
        client["by-hand"]["articles"].insert_many({"body": f"text {number}", "lang": "de"} for number in range(9))
        client["by-hand"]["articles"].insert_one({"body": "text", "lang": "en"})
    options = ("--field", "body", "--filter", '{"lang": "de"}', "--json")
    [job] = gpt2("export", "by-hand", "articles", *options)["jobs"]
    assert job["outputs"][0]["counts"]["documents"] == 9


def test_versions_are_measured_on_the_same_data(gpt2, stack, model):
    corpus = gpt2("export", "--files", str(stack.folder.parent / NAME), "--json")["outputs"]["corpus"]
    encoded = gpt2("tokenize", corpus, "--import", model, "--validation-fraction", "0.5", "--json")
    dataset = encoded["outputs"]["dataset"]
    metrics = gpt2("models", "evaluate", NAME, "--dataset", dataset, "--json")
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    compared = gpt2("models", "compare", NAME, "1", "2", "--dataset", dataset, "--json")
    [evaluation] = compared["evaluations"]
    assert evaluation["measurement"]["uri"] == dataset
    assert {row["name"]: row["values"] for row in evaluation["metrics"]} == {
        name: [value, value] for name, value in metrics.items()
    }
    assert "perplexity on dataset" in gpt2("models", "compare", NAME, "1", "2")
    assert "perplexity on dataset" in gpt2("models", "show", f"{NAME}/1")


def test_commands_find_the_stack_of_their_folder(stack, model):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GPT2_")}

    def run(*arguments: str) -> str:
        options = {"cwd": stack.folder.parent, "env": environment, "capture_output": True, "text": True}
        result = subprocess.run([GPT2, *arguments], timeout=300, **options)
        assert result.returncode == 0, result.stderr
        return result.stdout

    shown = {row["name"]: row for row in json.loads(run("config", "--json"))}
    trainer = shown["GPT2_TRAINER_ADDRESS"]
    assert (trainer["value"], trainer["source"]) == (stack.client.addresses["trainer"], f"stack in {stack.folder}")
    assert NAME in run("models", "list")
    assert f"{NAME}/register-1" in run("events", "list", "--run", NAME)


def test_jobs(gpt2):
    job = f"{NAME}/register-1"
    assert [item["job_id"] for item in gpt2("jobs", "list", "--run", NAME, "--json")] == [f"{NAME}/register-2", job]
    assert "ExportModel" in gpt2("jobs", "list")
    failed = gpt2("jobs", "list", "--run", NAME, "--state", "failed", "--service", "registry", "--json")
    assert failed == []
    assert gpt2("jobs", "show", job, "--json")["state"] == "STATE_SUCCEEDED"
    assert f"models:/{NAME}/1" in gpt2("jobs", "show", job)
    assert gpt2("jobs", "watch", job, "--json")["state"] == "STATE_SUCCEEDED"
    assert "FAILED_PRECONDITION" in gpt2("jobs", "cancel", job, status=1)
    assert "no service has a job nothing" in gpt2("jobs", "cancel", "nothing", status=1)


def test_generate(gpt2, model):
    options = ("--max-tokens", "6", "--seed", "3")
    text = gpt2("generate", model, "The licence", *options)
    assert text == gpt2("generate", f"{NAME}/1", *options, input="The licence\n")
    [sample] = gpt2("generate", NAME, "The licence", *options, "--json")["samples"]
    assert (sample["text"], sample["finish_reason"]) == (text.removesuffix("\n"), "length")
    both = gpt2("generate", NAME, "The licence", "--samples", "2", *options)
    assert "--- sample 2 ---" in both
    assert "top_p" in gpt2("generate", NAME, "x", "--top-p", "7", status=1)


def test_generate_many_prompts(gpt2, model):
    options = ("--max-tokens", "6", "--seed", "3", "--repetition-penalty", "1.2", "--no-repeat-ngram-size", "2")
    prompts = ("The licence", "The", "Über")
    alone = [gpt2("generate", model, prompt, *options, "--json")["samples"] for prompt in prompts]
    together = gpt2("generate", model, *prompts, *options, "--json")["prompts"]
    assert together == [{"prompt": prompt, "samples": samples} for prompt, samples in zip(prompts, alone, strict=True)]
    lines = "".join(f"{prompt}\n" for prompt in prompts)
    shown = gpt2("generate", model, "--prompts-file", "-", *options, input=lines)
    assert shown == gpt2("generate", model, *prompts, *options)
    assert "--- prompt 3 ---\n" in shown
    # A reader that goes away early is no error to speak of.
    command = f"set -o pipefail; {GPT2} generate {model} a b --max-tokens 500 --json | head -c 1"
    addresses = {**os.environ, **gpt2.addresses}
    piped = subprocess.run(["bash", "-c", command], env=addresses, capture_output=True, text=True, timeout=600)
    assert (piped.stdout, piped.stderr) == ("{", "")


def test_generate_asks_in_a_terminal(gpt2, model):
    ours, theirs = pty.openpty()
    os.write(ours, b"The licence\nThe work\n\x04")
    answers = gpt2("generate", model, "--max-tokens", "4", "--seed", "3", stdin=theirs)
    os.close(theirs)
    os.close(ours)
    assert answers == "".join(
        gpt2("generate", model, prompt, "--max-tokens", "4", "--seed", "3") for prompt in ("The licence", "The work")
    )


def test_doctor_finds_a_stack_well(gpt2, stack):
    findings = gpt2("doctor", "--folder", str(stack.folder), "--json")
    assert {item["what"] for item in findings if item["ok"]} >= {"exporter", "trainer", "registry", "Kafka", "MLflow"}
