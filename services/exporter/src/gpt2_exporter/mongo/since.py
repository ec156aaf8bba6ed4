"""What a previous corpus of the same source holds already."""

from dataclasses import dataclass
from typing import Any

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_common.artifacts import Artifact
from gpt2_common.errors import FailedPrecondition, InvalidRequest
from gpt2_exporter.mongo.identifier import bracket_of
from gpt2_exporter.mongo.snapshot import CollectionState, Snapshot

FIELD = "since_corpus_uri"
REACHED = "reached"
"""Property of a corpus that stops short of its snapshot: a snapshot of what it holds."""


@dataclass(frozen=True, slots=True)
class Since:
    """Where the export of a previous corpus ended."""

    digest: str
    """Digest of that corpus; empty when there is none."""
    collections: tuple[dict[str, Any], ...]
    """Greatest `_id` by bracket, for each of the source's collections."""
    documents: tuple[int, ...]
    """Documents that were there then, for each of them."""

    @classmethod
    def beginning(cls, source: pb.MongoSource) -> "Since":
        """No previous corpus."""
        return cls("", tuple({} for _ in source.collections), (0,) * len(source.collections))

    @classmethod
    def of(cls, corpus: Artifact, source: pb.MongoSource) -> "Since":
        """Reads it from the corpus.

        Raises:
            FailedPrecondition: The corpus was not exported from MongoDB, or from another source.
        """
        properties = corpus.manifest.properties
        try:
            snapshot = Snapshot.parse(properties.get(REACHED, properties.get("snapshot", "")), source)
        except InvalidRequest as error:
            raise FailedPrecondition(
                f"{FIELD}: {corpus.uri} was not exported from this source (connection, database, collections, filter, "
                "projection, text_field, title_field, template and list_separator must be the same): name a corpus "
                "that was, or leave the field out to export everything",
                uri=corpus.uri,
            ) from error
        states = snapshot.collections
        return cls(corpus.digest, tuple(map(_by_bracket, states)), tuple(state.documents for state in states))

    def after(self, collection: int, greatest: Any) -> tuple[Any, bool]:
        """The greatest `_id` read before in a collection, of the bracket of another one, and whether there is one."""
        bracket = bracket_of(greatest)
        return self.collections[collection].get(bracket), bracket in self.collections[collection]


def _by_bracket(state: CollectionState) -> dict[str, Any]:
    return {bracket_of(identifier): identifier for identifier in state.greatest}
