"""The artifacts that a model was made from, back to the corpus, according to their manifests."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpt2_common.artifacts import Artifact, Manifest, Parent
from gpt2_common.errors import DataLoss, FailedPrecondition, InvalidRequest, NotFound

ReadManifest = Callable[[str, str, str], Manifest]
"""Reads the manifest of an artifact: field for errors, URI, kind."""

_MAX_ANCESTORS = 100


@dataclass(frozen=True, slots=True)
class Ancestor:
    """An artifact in a model's lineage. Of one that no longer exists, kind, URI and digest alone are known."""

    kind: str
    uri: str
    digest: str
    counts: Mapping[str, float] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)
    producer: Mapping[str, str] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    """Digests of what it was made from."""

    def to_json(self) -> dict[str, Any]:
        """The artifact as an object of `lineage.json`."""
        return {
            "kind": self.kind,
            "uri": self.uri,
            "digest": self.digest,
            "counts": dict(self.counts),
            "properties": dict(self.properties),
            "producer": dict(self.producer),
            "parents": list(self.parents),
        }


def trace_ancestors(model: Artifact, read: ReadManifest) -> Iterator[Ancestor]:
    """Yields the model and its ancestors, nearest first, each artifact once."""
    yield _described(model.as_parent(), model.manifest)
    waiting = deque(model.manifest.parents)
    seen = {model.digest}
    while waiting and len(seen) <= _MAX_ANCESTORS:
        parent = waiting.popleft()
        if parent.digest in seen:
            continue
        seen.add(parent.digest)
        manifest = _manifest(parent, read)
        yield Ancestor(parent.kind, parent.uri, parent.digest) if manifest is None else _described(parent, manifest)
        waiting.extend(manifest.parents if manifest else ())


def _manifest(parent: Parent, read: ReadManifest) -> Manifest | None:
    """The manifest of a parent; None where it was deleted, moved or replaced since."""
    try:
        manifest = read("parents", parent.uri, parent.kind)
    except (DataLoss, FailedPrecondition, InvalidRequest, NotFound):
        return None
    return manifest if manifest.digest == parent.digest else None


def _described(parent: Parent, manifest: Manifest) -> Ancestor:
    return Ancestor(
        kind=parent.kind,
        uri=parent.uri,
        digest=parent.digest,
        counts=manifest.counts,
        properties=manifest.properties,
        producer=manifest.producer,
        parents=tuple(item.digest for item in manifest.parents),
    )
