"""The previous export of the same source, which an incremental export continues."""

from dataclasses import dataclass
from typing import Any

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_common.artifacts import Artifact
from gpt2_common.errors import FailedPrecondition, InvalidRequest
from gpt2_contracts.corpus import REACHED_PROPERTY, SNAPSHOT_PROPERTY
from gpt2_exporter.mongo.identifiers import bracket_of
from gpt2_exporter.mongo.snapshot import CollectionState, Snapshot

FIELD = "since_corpus_uri"


@dataclass(frozen=True, slots=True)
class PreviousExport:
    """Where the export of a previous corpus ended."""

    digest: str
    """Digest of that corpus; empty when there is none."""
    max_ids: tuple[dict[str, Any], ...]
    """Greatest `_id` in it by bracket of types, for each collection of the source."""
    documents: tuple[int, ...]
    """Documents in it, for each collection."""

    @classmethod
    def none(cls, source: pb.MongoSource) -> "PreviousExport":
        """Returns one without documents."""
        return cls("", tuple({} for _ in source.collections), (0,) * len(source.collections))

    @classmethod
    def of(cls, corpus: Artifact, source: pb.MongoSource) -> "PreviousExport":
        """Reads it from the corpus.

        Raises:
            FailedPrecondition: The corpus was not exported from MongoDB, or from another source.
        """
        properties = corpus.manifest.properties
        try:
            snapshot = Snapshot.parse(properties.get(REACHED_PROPERTY, properties.get(SNAPSHOT_PROPERTY, "")), source)
        except InvalidRequest as error:
            raise FailedPrecondition(
                f"{FIELD}: {corpus.uri} was not exported from this source (connection, database, collections, filter, "
                "projection, text_field, title_field, template and list_separator must be the same): name a corpus "
                "that was, or leave the field out to export everything",
                uri=corpus.uri,
            ) from error
        states = snapshot.collections
        return cls(corpus.digest, tuple(map(_by_bracket, states)), tuple(state.documents for state in states))

    def max_id(self, collection: int, identifier: Any) -> tuple[Any, bool]:
        """Returns the greatest `_id` of the same bracket as another one, and whether there is one.

        Args:
            collection: Index of the collection.
            identifier: The other `_id`.
        """
        bracket = bracket_of(identifier)
        return self.max_ids[collection].get(bracket), bracket in self.max_ids[collection]


def _by_bracket(state: CollectionState) -> dict[str, Any]:
    return {bracket_of(identifier): identifier for identifier in state.max_ids}
