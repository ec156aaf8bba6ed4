"""What was made of what, as the jobs tell of it."""

from gpt2.artifacts.v1.artifact_pb2 import Artifact
from gpt2.jobs.v1.job_pb2 import Job, RunPlan
from gpt2_orchestration.dashboard.lineage import lineage


def made(kind: str, run: str = "run", name: str = "", **properties: str) -> Artifact:
    return Artifact(
        name=name or kind, kind=kind, uri=f"file:///{run}/{kind}", digest=f"{run}-{kind}", properties=properties
    )


def job(kind: str, *outputs: Artifact, plan: RunPlan | None = None, run: str = "run") -> Job:
    return Job(job_id=f"{run}/{kind}", run_id=run, kind=kind, outputs=outputs, plan=plan)


def no_other(digest: str) -> None:
    return None


def edges(graph: dict) -> set[tuple[str, str]]:
    def short(key: str) -> str:
        return "source" if key.endswith("#source") else key.removeprefix("file:///")

    return {(short(source), short(target)) for source, target in graph["edges"]}


def test_a_run_from_documents_to_a_version():
    corpus, tokenizer, dataset = made("corpus"), made("tokenizer"), made("dataset")
    checkpoint = made("checkpoint", dataset_digest=dataset.digest, tokenizer_digest=tokenizer.digest)
    logs = made("logs")
    model = made("model", checkpoint_digest=checkpoint.digest)
    version = Artifact(name="version", kind="version", uri="models:/m/1", digest=model.digest)
    jobs = [
        job("ExportCorpus", corpus),
        job("TrainTokenizer", tokenizer),
        job("EncodeCorpus", dataset),
        job("TrainModel", checkpoint, logs),
        job("ExportModel", model),
        job("RegisterModel", version),
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
        ("run/tokenizer", "run/model"),
        ("run/model", "models:/m/1"),
        ("run/logs", "models:/m/1"),
    }
    assert {node["made_by"]["run_id"] for node in graph["nodes"] if node["made_by"]} == {"run"}


def test_what_another_run_made_is_found_by_its_digest():
    dataset = made("dataset", run="before")
    before = job("EncodeCorpus", dataset, run="before")
    checkpoint = made("checkpoint", dataset_digest=dataset.digest)
    graph = lineage([job("TrainModel", checkpoint)], {dataset.digest: (before, dataset)}.get)
    assert edges(graph) == {("before/dataset", "run/checkpoint")}
    [node] = [node for node in graph["nodes"] if node["kind"] == "dataset"]
    assert node["made_by"] == {"job_id": "before/EncodeCorpus", "run_id": "before", "kind": "EncodeCorpus"}


def test_what_nobody_knows_is_shown_by_its_digest():
    graph = lineage([job("TrainModel", made("checkpoint", dataset_digest="lost"))], no_other)
    assert edges(graph) == {("lost", "run/checkpoint")}
    assert [node["made_by"] for node in graph["nodes"] if node["id"] == "lost"] == [None]


def test_an_earlier_output_of_the_run_is_not_taken_for_another_digest():
    jobs = [job("EncodeCorpus", made("dataset")), job("TrainModel", made("checkpoint", dataset_digest="other"))]
    assert edges(lineage(jobs, no_other)) == {("other", "run/checkpoint")}


def test_the_plan_names_what_the_run_was_given():
    given = RunPlan(artifacts=[made("corpus", run="given")])
    graph = lineage([job("TrainTokenizer", made("tokenizer"), plan=given)], no_other)
    assert edges(graph) == {("given/corpus", "run/tokenizer")}
