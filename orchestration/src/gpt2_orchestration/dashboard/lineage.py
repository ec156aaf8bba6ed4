"""What was made of what in a run: artifacts as nodes, and an edge from each to what was made of it.

A job does not name its inputs. They are found by what it does say, the surest first: digests among the properties of
its outputs, the artifacts of its plan, and the outputs of earlier jobs of its run.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_orchestration.calls import START_CALLS
from gpt2_orchestration.dashboard.describing import Json, describe_artifact

_OPTIONAL_INPUTS = {"TrainModel": ("checkpoint",), "ExportModel": ("tokenizer",)}
_SOURCES = {
    "ExportCorpus": "MongoDB",
    "ImportFiles": "files",
    "ImportCheckpoint": "weights",
    "ImportTokenizer": "files",
}
"""Where the start calls that begin a run take from, where their outputs say no more."""

Finder = Callable[[str], tuple[job_pb2.Job, artifact_pb2.Artifact] | None]
"""Finds an artifact of another run, and the job that made it, by its digest."""


@dataclass(slots=True)
class _Graph:
    """Nodes by URI, or by digest where only that is known; and edges between them."""

    nodes: dict[str, Json] = field(default_factory=dict)
    edges: dict[tuple[str, str], None] = field(default_factory=dict)

    def add(self, artifact: artifact_pb2.Artifact, job: job_pb2.Job | None) -> str:
        """Adds an artifact, once. Returns its node's key: its URI, as a version has the digest of its model."""
        key = artifact.uri or artifact.digest
        if key not in self.nodes or job is not None:
            made_by = {"job_id": job.job_id, "run_id": job.run_id, "kind": job.kind} if job else None
            self.nodes[key] = {"id": key, **describe_artifact(artifact), "made_by": made_by}
        return key

    def join(self, source: str, target: str) -> None:
        """Adds an edge, once."""
        self.edges[source, target] = None


def lineage(jobs: Sequence[job_pb2.Job], find: Finder) -> Json:
    """The graph of a run.

    Args:
        jobs: Its jobs, oldest first.
        find: Finds artifacts of other runs.

    Returns:
        `nodes`, each an artifact with `id` and `made_by` (null where it is not known), and `edges`, pairs of ids.
    """
    graph = _Graph()
    made: dict[str, artifact_pb2.Artifact] = {}
    for job in jobs:
        sources = [graph.add(artifact, owner) for artifact, owner in _inputs(job, made, find)]
        if job.outputs and job.kind in _SOURCES:
            source = f"{job.job_id}#source"
            named = next((output.properties["source"] for output in job.outputs if output.properties.get("source")), "")
            graph.nodes[source] = _source(source, named or _SOURCES[job.kind])
            sources.append(source)
        for output in job.outputs:
            target = graph.add(output, job)
            for source in sources:
                graph.join(source, target)
            made[output.name] = output
    return {"nodes": list(graph.nodes.values()), "edges": [list(edge) for edge in graph.edges]}


def _inputs(
    job: job_pb2.Job, made: dict[str, artifact_pb2.Artifact], find: Finder
) -> Iterator[tuple[artifact_pb2.Artifact, job_pb2.Job | None]]:
    """The artifacts that a job was made of, each with the job that made it where that is of another run."""
    if not job.outputs or job.kind not in START_CALLS:
        return
    planned = {artifact.name: artifact for artifact in job.plan.artifacts}
    optional = _OPTIONAL_INPUTS.get(job.kind, ())
    for name in dict.fromkeys((*START_CALLS[job.kind].inputs, *optional)):
        digest = _digest(job.outputs, name)
        known = [item for item in (planned.get(name), made.get(name)) if item is not None]
        same = [item for item in known if item.digest == digest] if digest else known
        if same:
            yield same[0], None
        elif digest:
            yield _from_elsewhere(name, digest, find)


def _digest(outputs: Iterable[artifact_pb2.Artifact], name: str) -> str:
    """The digest of an input, as the outputs' properties have it; a version has its model's as its own."""
    for output in outputs:
        if name == "model" and output.kind == "version":
            return output.digest
        if digest := output.properties.get(f"{name}_digest", ""):
            return digest
    return ""


def _from_elsewhere(name: str, digest: str, find: Finder) -> tuple[artifact_pb2.Artifact, job_pb2.Job | None]:
    found = find(digest)
    if found is None:
        return artifact_pb2.Artifact(name=name, kind=name, digest=digest), None
    job, artifact = found
    return artifact, job


def _source(key: str, name: str) -> Json:
    return {
        "id": key,
        "name": name,
        "kind": "source",
        "uri": "",
        "digest": "",
        "counts": {},
        "properties": {},
        "made_by": None,
    }
