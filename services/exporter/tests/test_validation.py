"""What requests can get wrong."""

import pytest
from pydantic import SecretStr
from request_problems import request_problems

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_exporter.settings import ExporterSettings
from gpt2_exporter.validation import export_problems, import_problems


@pytest.fixture
def named(monkeypatch, tmp_path):
    monkeypatch.setenv("GPT2_MONGODB_URI_NEWS", "mongodb://user:hush@news")
    monkeypatch.setenv("GPT2_SECRETS_DIR", str(tmp_path))
    (tmp_path / "gpt2_mongodb_uri_files").write_text("mongodb://user:hush@files\n")
    return ExporterSettings()


def problems_of(request, settings):
    return request_problems(request, export_problems(request, settings))


def wrong_fields(settings, **fields):
    source = pb.MongoSource(**{"database": "news", "collections": ["articles"], **fields})
    request = pb.ExportCorpusRequest(source=source)
    return [field for field, _ in problems_of(request, settings)]


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({}, []),
        ({"text_field": "body.text", "filter": '{"a": {"$in": [1, 2]}}', "collections": ["a", "b.c"]}, []),
        ({"connection": "news"}, []),
        ({"connection": "NEWS"}, []),
        ({"connection": "files"}, []),
        ({"connection": "other"}, ["source.connection"]),
        ({"connection": "mongodb://a"}, ["source.connection"]),
        ({"database": ""}, ["source.database"]),
        ({"database": "a b"}, ["source.database"]),
        ({"database": "a$b"}, ["source.database"]),
        ({"collections": []}, ["source.collections"]),
        ({"collections": ["a", ""]}, ["source.collections[1]"]),
        ({"collections": ["$cmd"]}, ["source.collections[0]"]),
        ({"collections": ["a", "b", "a"]}, ["source.collections[2]"]),
        ({"collections": ["a."]}, ["source.collections[0]"]),
        ({"text_field": "a..b"}, ["source.text_field"]),
        ({"text_field": "$text"}, ["source.text_field"]),
        ({"filter": "{"}, ["source.filter"]),
        ({"filter": "[]"}, ["source.filter"]),
        ({"filter": '"a"'}, ["source.filter"]),
        ({"filter": '{"_id": {"$oid": "no"}}'}, ["source.filter"]),
        ({"filter": '{"a": {"$date": []}}'}, ["source.filter"]),
        ({"filter": '{"a":' * 50_000}, ["source.filter"]),
        ({"filter": '{"$where": "sleep(1)"}'}, ["source.filter"]),
        ({"filter": '{"$or": [{"a": 1}, {"$expr": {"$function": {"body": "x"}}}]}'}, ["source.filter"]),
        ({"filter": '{"a": {"$accumulator": {}}}'}, ["source.filter"]),
    ],
)
def test_sources(named, fields, wrong):
    assert wrong_fields(named, **fields) == wrong


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"title_field": "head", "template": "{title}: {text}", "limit": 5, "read_preference": 3}, []),
        ({"title_field": "a..b"}, ["source.title_field"]),
        ({"template": "{title} {text}"}, ["source.template"]),
        ({"title_field": "a", "template": "{text}"}, ["source.template"]),
        ({"title_field": "a", "template": "{title} {text} {text}"}, ["source.template"]),
        ({"title_field": "a", "template": "{title} {text} }"}, ["source.template"]),
        ({"projection": '{"text": 1, "a": {"$slice": 1}}'}, []),
        ({"projection": '{"body": 1}', "text_field": "body.text"}, []),
        ({"projection": '{"big": 0}'}, []),
        ({"projection": "[]"}, ["source.projection"]),
        ({"projection": '{"_id": 0, "text": 1}'}, ["source.projection"]),
        ({"projection": '{"other": 1}'}, ["source.projection"]),
        ({"projection": '{"text": 0}'}, ["source.projection"]),
        ({"projection": '{"text": 1}', "title_field": "head"}, ["source.projection"]),
        ({"projection": '{"text": {"$function": {"body": "x"}}}'}, ["source.projection"]),
        ({"limit": -1}, ["source.limit"]),
        ({"read_preference": 77}, ["source.read_preference"]),
    ],
)
def test_options_of_a_source(named, fields, wrong):
    assert wrong_fields(named, **fields) == wrong


def test_options_of_documents(named):
    request = pb.ExportCorpusRequest(
        source=pb.MongoSource(database="news", collections=["articles"]),
        max_rejected_fraction=1.5,
        documents=pb.DocumentOptions(normalization=9, min_characters=-1, max_characters=-2),
    )
    assert [field for field, _ in problems_of(request, named)] == [
        "max_rejected_fraction",
        "documents.normalization",
        "documents.min_characters",
        "documents.max_characters",
    ]


def test_a_source_is_required(named):
    assert request_problems(pb.ExportCorpusRequest(), export_problems(pb.ExportCorpusRequest(), named)) == [
        ("source", "is required")
    ]


def test_a_bad_snapshot_and_a_bad_limit_are_named(named):
    source = pb.MongoSource(database="news", collections=["articles"])
    request = pb.ExportCorpusRequest(source=source, snapshot="x", max_rejected=-2)
    assert [field for field, _ in problems_of(request, named)] == [
        "max_rejected",
        "snapshot",
    ]


def test_an_unknown_connection_is_an_error_that_names_the_setting_without_secrets(named):
    source = pb.MongoSource(connection="other", database="news", collections=["articles"])
    [(_, description)] = request_problems(
        pb.ExportCorpusRequest(source=source),
        export_problems(pb.ExportCorpusRequest(source=source), named),
    )
    assert "named connections: FILES, NEWS" in description
    assert "GPT2_MONGODB_URI_OTHER" in description
    assert "hush" not in description + repr(named)


def test_connections_come_from_variables_and_secret_files(named):
    assert named.connection_uri("news") == SecretStr("mongodb://user:hush@news")
    assert named.connection_uri("Files") == SecretStr("mongodb://user:hush@files")
    assert named.connection_uri("") == SecretStr("mongodb://localhost:27017")


def allow_everything(_field, uri):
    return uri


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({}, []),
        ({"encoding": "latin-1", "text_field": "a.b", "max_rejected": -1}, []),
        ({"encoding": "utf-16"}, []),
        ({"uris": []}, ["uris"]),
        ({"encoding": "klingon"}, ["encoding"]),
        ({"encoding": "base64"}, ["encoding"]),
        ({"encoding": "utf-8\0"}, ["encoding"]),
        ({"text_unit": 9, "encoding_errors": 9}, ["text_unit", "encoding_errors"]),
        ({"documents": pb.DocumentOptions(min_characters=5, max_characters=4)}, ["documents.max_characters"]),
        ({"text_field": ".", "max_rejected": -5}, ["text_field", "max_rejected"]),
    ],
)
def test_imports(fields, wrong):
    request = pb.ImportFilesRequest(**{"uris": ["file:///a"], **fields})
    assert [field for field, _ in request_problems(request, import_problems(request, allow_everything))] == wrong


def test_every_uri_outside_the_roots_is_named(context):
    request = pb.ImportFilesRequest(uris=["file:///etc", f"{context.settings.roots[1]}/a", "no uri", ""])
    fields = [field for field, _ in request_problems(request, import_problems(request, context.require_allowed))]
    assert fields == ["uris[0]", "uris[2]", "uris[3]"]
