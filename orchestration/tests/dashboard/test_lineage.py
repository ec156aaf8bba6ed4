"""The lineage of a run, from the inputs and outputs of its jobs."""

from gpt2.artifacts.v1.artifact_pb2 import Artifact
from gpt2.jobs.v1.job_pb2 import Job
from gpt2_orchestration.dashboard.lineage import lineage


def made(kind: str, run: str = "run", **properties: str) -> Artifact:
    return Artifact(name=kind, kind=kind, uri=f"file:///{run}/{kind}", digest=f"{run}-{kind}", properties=properties)


def job(kind: str, outputs: list[Artifact], inputs: list[Artifact] = (), run: str = "run") -> Job:
    return Job(job_id=f"{run}/{kind}", run_id=run, kind=kind, outputs=outputs, inputs=inputs)


def no_other(uri: str) -> None:
    return None


def edges(graph: dict) -> set[tuple[str, str]]:
    def short(key: str) -> str:
        return "source" if key.endswith("#source") else key.removeprefix("file:///")

    return {(short(source), short(target)) for source, target in graph["edges"]}


def test_a_run_from_documents_to_a_version():
    corpus, tokenizer, dataset = made("corpus"), made("tokenizer"), made("dataset")
    checkpoint, logs, model = made("checkpoint"), made("logs"), made("model")
    version = Artifact(name="version", kind="version", uri="models:/m/1", digest=model.digest)
    jobs = [
        job("ExportCorpus", [corpus]),
        job("TrainTokenizer", [tokenizer], [corpus]),
        job("EncodeCorpus", [dataset], [corpus, tokenizer]),
        job("TrainModel", [checkpoint, logs], [dataset]),
        job("ExportModel", [model], [checkpoint]),
        job("RegisterModel", [version], [model, logs]),
    ]
    graph = lineage(jobs, no_other)
    assert edges(graph) == {
        ("source", "run/corpus"),
        ("run/corpus", "run/tokenizer"),
        ("run/corpus", "run/dataset"),
        ("run/tokenizer", "run/dataset"),
        ("run/dataset", "run/checkpoint"),
        ("run/dataset", "run/logs"),
        ("run/checkpoint", "run/model"),
        ("run/model", "models:/m/1"),
        ("run/logs", "models:/m/1"),
    }
    assert {node["made_by"]["run_id"] for node in graph["nodes"] if node["made_by"]} == {"run"}


def test_an_input_that_another_run_made_is_found_by_its_uri():
    dataset = made("dataset", run="before")
    before = job("EncodeCorpus", [dataset], run="before")
    named = Artifact(name="dataset", kind="dataset", uri=dataset.uri)
    graph = lineage([job("TrainModel", [made("checkpoint")], [named])], {dataset.uri: (before, dataset)}.get)
    assert edges(graph) == {("before/dataset", "run/checkpoint")}
    [node] = [node for node in graph["nodes"] if node["kind"] == "dataset"]
    assert node["digest"] == dataset.digest
    assert node["made_by"] == {"job_id": "before/EncodeCorpus", "run_id": "before", "kind": "EncodeCorpus"}


def test_an_input_that_no_known_job_made_is_shown():
    graph = lineage([job("TrainModel", [made("checkpoint")], [made("dataset", run="lost")])], no_other)
    assert edges(graph) == {("lost/dataset", "run/checkpoint")}
    assert [node["made_by"] for node in graph["nodes"] if node["kind"] == "dataset"] == [None]


def test_a_job_without_recorded_inputs_has_no_edges():
    graph = lineage([job("EncodeCorpus", [made("dataset")]), job("TrainModel", [made("checkpoint")])], no_other)
    assert edges(graph) == set()
    assert len(graph["nodes"]) == 2


def test_a_job_without_outputs_adds_nothing():
    assert lineage([job("TrainModel", [], [made("dataset")])], no_other) == {"nodes": [], "edges": []}
