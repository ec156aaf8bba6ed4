"""What can be wrong with a request, found without asking any server: lists of pairs of field and description."""

import codecs
import re
from collections.abc import Callable, Sequence
from functools import partial

from google.protobuf.message import Message

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_common.errors import InvalidRequest
from gpt2_exporter.corpus.field_path import DEFAULT_TEXT_FIELD
from gpt2_exporter.files.rules import delimiter_of
from gpt2_exporter.mongo.extended_json import parse_filter, parse_projection
from gpt2_exporter.mongo.snapshot import Snapshot
from gpt2_exporter.mongo.text import TextRule
from gpt2_exporter.settings import ExporterSettings, connection_setting

Problems = list[tuple[str, str]]
AllowCheck = Callable[[str, str], str]

_CONNECTION = re.compile(r"[A-Za-z0-9_]{1,64}")
_COLUMN_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_DATABASE = re.compile(r'[^/\\. "$*<>:|?\0]{1,63}')


def export_problems(
    request: pb.ExportCorpusRequest, settings: ExporterSettings, require_allowed: AllowCheck
) -> Problems:
    """What is wrong with a request for an export.

    Args:
        request: The request.
        settings: Which connections there are.
        require_allowed: Takes a field and a URI; raises InvalidRequest when the URI is outside the allowed roots.
    """
    problems = source_problems(request.HasField("source"), request.source, settings)
    if not problems and request.snapshot:
        problems += _violations_of(lambda: Snapshot.parse(request.snapshot, request.source))
    if request.since_corpus_uri:
        problems += _violations_of(lambda: require_allowed("since_corpus_uri", request.since_corpus_uri))
    return problems + _limit_problems(request) + _document_problems(request.documents)


def import_problems(request: pb.ImportFilesRequest, require_allowed: AllowCheck) -> Problems:
    """What is wrong with a request for an import.

    Args:
        request: The request.
        require_allowed: Takes a field and a URI; raises InvalidRequest when the URI is outside the allowed roots.
    """
    problems: Problems = [] if request.uris else [("uris", "is required: name at least one folder, file or glob")]
    for index, uri in enumerate(request.uris):
        problems += _violations_of(partial(require_allowed, f"uris[{index}]", uri))
    problems += _text_field_problems("text_field", request.text_field)
    problems += _encoding_problems(request.encoding)
    problems += _enum_problems(request, "text_unit", "encoding_errors")
    problems += _table_problems(request)
    problems += _text_field_problems("documents_field", request.documents_field)
    if request.document_separator and request.text_unit:
        problems.append(("document_separator", "excludes text_unit, which cuts files otherwise: leave one of them out"))
    elif request.document_separator and not request.document_separator.strip("\r\n"):
        problems.append(
            ("document_separator", "is a line break: set text_unit to TEXT_UNIT_LINE or _PARAGRAPH instead")
        )
    return problems + _limit_problems(request) + _document_problems(request.documents)


def _table_problems(request: pb.ImportFilesRequest) -> Problems:
    problems: Problems = []
    delimiter = delimiter_of(request.csv_delimiter)
    if len(delimiter) > 1 or (delimiter and delimiter in '"\r\n\0'):
        problems.append(
            (
                "csv_delimiter",
                f"{request.csv_delimiter!r} is not one character, such as ; or \\t (a tab): set it to one",
            )
        )
    nameless = request.HasField("csv_header") and not request.csv_header
    column = request.text_field or DEFAULT_TEXT_FIELD
    if nameless and column != DEFAULT_TEXT_FIELD and not _COLUMN_NUMBER.fullmatch(column):
        problems.append(
            ("text_field", f"{column!r} is no number of a column, from 1: with csv_header false columns have no names")
        )
    return problems


def source_problems(present: bool, source: pb.MongoSource, settings: ExporterSettings) -> Problems:
    """What is wrong with a source.

    Args:
        present: Whether the request has one at all.
        source: The source.
        settings: Which connections there are.
    """
    if not present:
        return [("source", "is required")]
    return [
        *_connection_problems(source.connection, settings),
        *_database_problems(source.database),
        *_collection_problems(source.collections),
        *_text_field_problems("source.text_field", source.text_field),
        *_violations_of(lambda: parse_filter(source.filter)),
        *_text_field_problems("source.title_field", source.title_field),
        *_violations_of(lambda: parse_projection(source.projection, TextRule.of(source).paths)),
        *_enum_problems(source, "read_preference", prefix="source."),
        *([] if source.limit >= 0 else [("source.limit", "must be 0 (no limit) or greater")]),
    ]


def _connection_problems(connection: str, settings: ExporterSettings) -> Problems:
    if connection and not _CONNECTION.fullmatch(connection):
        return [("source.connection", "must be a connection's name: letters, digits and '_', 64 at most")]
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


def _database_problems(database: str) -> Problems:
    if not database:
        return [("source.database", "is required")]
    if not _DATABASE.fullmatch(database):
        return [("source.database", 'is no name of a MongoDB database: 1 to 63 characters without /\\. "$*<>:|?')]
    return []


def _collection_problems(collections: Sequence[str]) -> Problems:
    if not collections:
        return [("source.collections", "is required: name at least one collection")]
    problems = []
    for index, name in enumerate(collections):
        field = f"source.collections[{index}]"
        if not all(name.split(".")) or "$" in name or "\0" in name or len(name.encode()) > 255:
            problems.append((field, f"{name!r} is no name of a MongoDB collection"))
        elif name in collections[:index]:
            problems.append((field, f"{name} is named twice: its documents would be exported twice"))
    return problems


def _text_field_problems(field: str, path: str) -> Problems:
    if not path:
        return []
    if "\0" in path or any(not part or part.startswith("$") for part in path.split(".")):
        return [(field, f"{path!r} is no path of a field, such as body.text")]
    return []


def _encoding_problems(encoding: str) -> Problems:
    if not encoding:
        return []
    try:
        codecs.lookup(encoding)
        "\n".encode(encoding)
    except (LookupError, ValueError):
        return [("encoding", f"{encoding!r} is no known encoding of text: use a name such as utf-8, latin-1 or cp1252")]
    return []


def _limit_problems(request: pb.ExportCorpusRequest | pb.ImportFilesRequest) -> Problems:
    problems: Problems = []
    if request.max_rejected < -1:
        problems.append(("max_rejected", "must be -1 (no limit), 0 or greater"))
    if not 0 <= request.max_rejected_share <= 1:
        problems.append(("max_rejected_share", "must be a share from 0 to 1"))
    return problems


def _document_problems(options: pb.DocumentOptions) -> Problems:
    problems = _enum_problems(options, "normalization", prefix="documents.")
    for name in ("min_characters", "max_characters"):
        if getattr(options, name) < 0:
            problems.append((f"documents.{name}", "must be 0 (no limit) or greater"))
    if 0 < options.max_characters < options.min_characters:
        problems.append(
            ("documents.max_characters", "is less than documents.min_characters: no text has such a length")
        )
    return problems


def _enum_problems(message: Message, *names: str, prefix: str = "") -> Problems:
    problems = []
    for name in names:
        values = message.DESCRIPTOR.fields_by_name[name].enum_type.values
        if getattr(message, name) not in {value.number for value in values}:
            known = ", ".join(value.name for value in values)
            problems.append((f"{prefix}{name}", f"has no value {getattr(message, name)}: use one of {known}"))
    return problems


def _violations_of(check: Callable[[], object]) -> Problems:
    try:
        check()
    except InvalidRequest as error:
        return list(error.violations)
    return []
