"""Checks requests without any server: problems are pairs of field and description."""

import codecs
import re
from collections.abc import Callable
from functools import partial

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_common.errors import violations_of
from gpt2_exporter.corpus.field_path import DEFAULT_TEXT_FIELD
from gpt2_exporter.mongo.extended_json import parse_filter, parse_projection
from gpt2_exporter.mongo.snapshot import Snapshot
from gpt2_exporter.mongo.text import TextRule
from gpt2_exporter.settings import ExporterSettings, connection_setting

Problems = list[tuple[str, str]]
AllowCheck = Callable[[str, str], str]

_COLUMN_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


def export_problems(request: pb.ExportCorpusRequest, settings: ExporterSettings) -> Problems:
    """Returns the problems of a request for an export.

    Args:
        request: The request.
        settings: The settings with the connections.
    """
    problems = source_problems(request.source, settings)
    if not problems and request.snapshot:
        problems += violations_of(lambda: Snapshot.parse(request.snapshot, request.source))
    return problems + _document_problems(request.documents)


def import_problems(request: pb.ImportFilesRequest, require_allowed: AllowCheck) -> Problems:
    """Returns the problems of a request for an import.

    Args:
        request: The request.
        require_allowed: Takes a field and a URI; raises InvalidRequest when the URI is outside the allowed roots.
    """
    problems: Problems = []
    for index, uri in enumerate(request.uris):
        problems += violations_of(partial(require_allowed, f"uris[{index}]", uri))
    problems += _encoding_problems(request.encoding)
    problems += _column_problems(request)
    if request.document_separator and request.text_unit:
        problems.append(
            ("document_separator", "excludes text_unit: both divide files into documents; leave one of them out")
        )
    return problems + _document_problems(request.documents)


def _column_problems(request: pb.ImportFilesRequest) -> Problems:
    nameless = request.HasField("csv_header") and not request.csv_header
    column = request.text_field or DEFAULT_TEXT_FIELD
    if nameless and column != DEFAULT_TEXT_FIELD and not _COLUMN_NUMBER.fullmatch(column):
        text = f"{column!r:.60} is not a column number, from 1: with csv_header false columns have no names"
        return [("text_field", text)]
    return []


def source_problems(source: pb.MongoSource, settings: ExporterSettings) -> Problems:
    """Returns the problems of a source, except for the rules of its fields.

    Args:
        source: The source.
        settings: The settings with the connections.
    """
    return [
        *_connection_problems(source.connection, settings),
        *violations_of(lambda: parse_filter(source.filter)),
        *violations_of(lambda: parse_projection(source.projection, TextRule.of(source).paths)),
    ]


def _connection_problems(connection: str, settings: ExporterSettings) -> Problems:
    if settings.connection_uri(connection) is None:
        known = ", ".join(settings.connections) or "none"
        return [
            (
                "source.connection",
                f"{connection} is not configured (named connections: {known}): "
                f"set {connection_setting(connection)} where the exporter runs",
            )
        ]
    return []


def _encoding_problems(encoding: str) -> Problems:
    if not encoding:
        return []
    try:
        codecs.lookup(encoding)
        "\n".encode(encoding)
    except (LookupError, ValueError):
        return [("encoding", f"{encoding!r} is not a known text encoding: use a name such as utf-8, latin-1 or cp1252")]
    return []


def _document_problems(options: pb.DocumentOptions) -> Problems:
    if 0 < options.max_characters < options.min_characters:
        return [("documents.max_characters", "is less than documents.min_characters: no text has such a length")]
    return []
