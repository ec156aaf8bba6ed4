"""The lineage of a run: artifacts as nodes, and an edge from each input of a job to each of its outputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gpt2.artifacts.v1 import artifact_pb2
from gpt2.jobs.v1 import job_pb2
from gpt2_contracts.corpus import SOURCE_PROPERTY
from gpt2_orchestration.dashboard.serialization import Json, describe_artifact

_SOURCES = {
    "ExportCorpus": "MongoDB",
    "ImportFiles": "files",
    "ImportCheckpoint": "weights",
    "ImportTokenizer": "files",
}
"""Sources of the stages without inputs, where the outputs name none."""

Finder = Callable[[str], tuple[job_pb2.Job, artifact_pb2.Artifact] | None]
"""Finds an artifact of another run, and the job that made it, by its URI."""


@dataclass(slots=True)
class _Graph:
    """Nodes by URI, and edges between them."""

    nodes: dict[str, Json] = field(default_factory=dict)
    edges: dict[tuple[str, str], None] = field(default_factory=dict)

    def add(self, artifact: artifact_pb2.Artifact, job: job_pb2.Job | None) -> str:
        """Adds an artifact once, with the job that made it where that is known. Returns its key."""
        if artifact.uri not in self.nodes or job is not None:
            made_by = {"job_id": job.job_id, "run_id": job.run_id, "kind": job.kind} if job else None
            self.nodes[artifact.uri] = {"id": artifact.uri, **describe_artifact(artifact), "made_by": made_by}
        return artifact.uri

    def join(self, source: str, target: str) -> None:
        """Adds an edge once."""
        self.edges[source, target] = None


def lineage(jobs: Sequence[job_pb2.Job], find: Finder) -> Json:
    """Builds the graph of a run.

    Args:
        jobs: Its jobs, oldest first. Those created before `Job.inputs` existed have no edges.
        find: Finds artifacts of other runs.

    Returns:
        `nodes`, each an artifact with `id` and `made_by` (null if unknown), and `edges`, pairs of ids.
    """
    graph = _Graph()
    for job in jobs:
        if not job.outputs:
            continue
        sources = [_add_input(graph, artifact, find) for artifact in job.inputs]
        if job.kind in _SOURCES:
            key = f"{job.job_id}#source"
            named = next(
                (
                    output.properties[SOURCE_PROPERTY]
                    for output in job.outputs
                    if output.properties.get(SOURCE_PROPERTY)
                ),
                "",
            )
            graph.nodes[key] = _source(key, named or _SOURCES[job.kind])
            sources.append(key)
        for output in job.outputs:
            target = graph.add(output, job)
            for source in sources:
                graph.join(source, target)
    return {"nodes": list(graph.nodes.values()), "edges": [list(edge) for edge in graph.edges]}


def _add_input(graph: _Graph, artifact: artifact_pb2.Artifact, find: Finder) -> str:
    """Adds an input, which an earlier job of the run, another run, or no known job has made. Returns its key."""
    if artifact.uri not in graph.nodes and (found := find(artifact.uri)) is not None:
        job, made = found
        return graph.add(made, job)
    return graph.add(artifact, None)


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
