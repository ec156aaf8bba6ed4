"""Options for files as other tools write them, and the errors that name an option where a file seems to need it."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from request_problems import request_problems

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_common.errors import FailedPrecondition
from gpt2_exporter.validation import import_problems

END = "<|endoftext|>"


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    return folder


@pytest.fixture
def run(texts, make_context, export):
    """Imports a file of a name and content; further files stay from call to call."""
    jobs = iter(range(99))

    def run(name="", content=b"", settings=None, **fields):
        if name:
            (texts / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        request = pb.ImportFilesRequest(uris=[texts.as_uri()], **fields)
        return export(request, make_context(f"job-{next(jobs)}", **(settings or {})))

    return run


def ids(corpus):
    return [row["id"] for row in corpus.rows]


def wrong_fields(**fields):
    request = pb.ImportFilesRequest(uris=["file:///a"], **fields)
    return [field for field, _ in request_problems(request, import_problems(request, lambda _field, uri: uri))]


@pytest.mark.parametrize(("delimiter", "given"), [(";", ";"), ("\t", "\t"), ("\t", r"\t"), ("|", "|"), ("§", "§")])
def test_csv_with_another_delimiter_is_read_with_the_option(run, delimiter, given):
    content = f'id{delimiter}text\r\n1{delimiter}Guten Tag, Welt\r\n2{delimiter}"a{delimiter}b"\r\n'
    assert run("a.csv", content, csv_delimiter=given).texts == ["Guten Tag, Welt", f"a{delimiter}b"]


@pytest.mark.parametrize("end", ["", ".gz"])
def test_tsv_has_tabs_unless_the_option_is_another_delimiter(run, texts, end):
    compress = gzip.compress if end else bytes
    assert run(f"a.tsv{end}", compress(b"id\ttext\n1\tGuten Tag\n2\tZwei, drei\n")).texts == ["Guten Tag", "Zwei, drei"]
    assert run(f"a.tsv{end}", compress(b"id;text\n1;a\tb\n"), csv_delimiter=";").texts == ["a\tb"]


@pytest.mark.parametrize(
    ("name", "header", "field", "words"),
    [
        ("a.csv", "id;text", "text", "no column text; its first row names id;text: set csv_delimiter to ';'"),
        ("a.csv", "id\ttext, long\tmore", "text, long", r"set csv_delimiter to '\\t'"),
        ("a.csv", '"id"|"text"', "text", r"\(.*\): set csv_delimiter to '\|'"),
        ("a.tsv", "id,text", "text", "set csv_delimiter to ','"),
        ("a.csv", "id;Text", "text", "set csv_delimiter to ';' if that separates its columns, or set text_field"),
        ("a.csv", "The first tweet", "text", "csv_header to false where the first row is a document"),
    ],
)
def test_a_header_that_seems_to_need_an_option_names_it(run, name, header, field, words):
    with pytest.raises(FailedPrecondition, match=words):
        run(name, f"{header}\n1;2\n", text_field=field)


def test_csv_without_a_header_has_its_first_row_as_a_document(run):
    corpus = run("a.csv", "\ufeffThe first tweet\nThe second, one\nThe third one\n", csv_header=False, max_rejected=-1)
    assert corpus.texts == ["The first tweet", "The third one"]
    assert ids(corpus) == ["a.csv:1", "a.csv:3"]
    rows = "\n1,one\n2,two\n"
    assert run("a.csv", rows, csv_header=False, text_field="2").texts == ["one", "two"]
    with pytest.raises(FailedPrecondition, match=r"2 columns, without names.*set text_field to the number"):
        run("a.csv", rows, csv_header=False)
    with pytest.raises(
        FailedPrecondition, match=r"one column, with tabs in it: set csv_delimiter to '\\t', or text_field"
    ):
        run("a.csv", "1\tone\n", csv_header=False)
    assert run("a.csv", "1\tone\n", csv_header=False, text_field="1").texts == ["1\tone"]
    with pytest.raises(FailedPrecondition, match=r"1 columns, and text_field is 2: set csv_delimiter to ';' if"):
        run("a.csv", "1;one\n", csv_header=False, text_field="2")


def test_reading_resumes_in_csv_without_a_header(run, texts, make_context, export):
    lines = [f"{n} " * 30 for n in range(60)]
    (texts / "a.csv").write_text("".join(f"{line}\n" for line in [*lines, '""']))
    request = {"uris": [texts.as_uri()], "csv_header": False}
    small = {"corpus_shard_bytes": 1000}
    with pytest.raises(FailedPrecondition, match="1 text empty"):
        export(pb.ImportFilesRequest(**request), make_context("a", **small))
    assert json.loads((make_context("a").work / "export.json").read_text())["shards"] > 3
    assert export(pb.ImportFilesRequest(**request, max_rejected=1), make_context("a", **small)).texts == lines


@pytest.mark.parametrize(
    ("separator", "content"),
    [
        (END, f"Erster.\nZeile{END}Zweiter.{END}"),
        (END, f"\ufeff{END}\nErster.\nZeile\n{END}\r\nZweiter.\r\n{END}\n \n{END}"),
        ("\n---\n", "\nErster.\nZeile\n\n---\n---\n\n---\nZweiter."),
        ("|", "Erster.\nZeile|||Zweiter."),
        ("§", "Erster.\nZeile\n§Zweiter."),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("block", [1 << 20, 1, 5])
def test_a_marker_between_documents_separates_them_and_is_none(run, monkeypatch, separator, content, encoding, block):
    monkeypatch.setattr("gpt2_exporter.files.plain_text._BLOCK", block)
    text = content.removeprefix("\ufeff") if encoding == "utf-16" else content
    corpus = run("a.txt", text.encode(encoding), document_separator=separator, encoding=encoding)
    assert corpus.texts[-1] == "Zweiter."
    assert corpus.texts[0] == "Erster.\nZeile"
    assert ids(corpus) == [f"a.txt:{n}" for n in range(1, len(corpus.texts) + 1)]


def test_a_document_before_a_marker_that_is_broken_or_too_large_is_left_out_alone(run, monkeypatch):
    content = b"good" + END.encode() + b"b\xffd" + END.encode() + b"gut"
    corpus = run("a.txt", content, document_separator=END, max_rejected=1)
    assert (corpus.texts, corpus.rejects[0]["id"]) == (["good", "gut"], "a.txt:2")
    monkeypatch.setattr("gpt2_exporter.files.plain_text._BLOCK", 7)
    monkeypatch.setattr("gpt2_exporter.rejects.reasons.MAX_DOCUMENT_BYTES", 20)
    corpus = run("a.txt", f"a{END}{'x' * 99}{END}b", document_separator=END, max_rejected=1)
    assert (corpus.texts, corpus.rejects[0]["reason"]) == (["a", "b"], "too large")


def test_reading_resumes_between_markers(run, texts, make_context, export):
    documents = [f"{n} " * 30 for n in range(60)]
    (texts / "a.txt.gz").write_bytes(gzip.compress((END.join(documents) + END).encode() + b"\xff"))
    request = {"uris": [texts.as_uri()], "document_separator": END}
    small = {"corpus_shard_bytes": 1000}
    with pytest.raises(FailedPrecondition, match="1 broken UTF-8"):
        export(pb.ImportFilesRequest(**request), make_context("a", **small))
    assert json.loads((make_context("a").work / "export.json").read_text())["shards"] > 3
    assert export(pb.ImportFilesRequest(**request, max_rejected=1), make_context("a", **small)).texts == documents


def test_a_text_file_with_markers_names_the_option(run):
    content = f"one{END}two"
    with pytest.raises(
        FailedPrecondition, match=r"1 <\|endoftext\|> inside.*set document_separator to <\|endoftext\|>"
    ):
        run("a.txt", content)
    assert run(text_unit=pb.TEXT_UNIT_FILE).texts == [content]


@pytest.mark.parametrize("block", [1 << 16, 1])
@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("data", '{"n": [1, {"data": 2}], "data": [{"text": "a"}, {"text": "b"}, "c"], "data2": "x"}'),
        ("data.items", '\ufeff{"data": {"items": [{"text": "a"}, {"text": "b"}], "n": {}}} {"data": {"items": ["c"]}}'),
        ("data.items", '{"data": [{"items": [{"text": "a"}, {"text": "b"}]}, {"items": [], "n": 1}, {"items": "c"}]}'),
        ("data", '[{"data": [{"text": "a"}]}, {"data": []}, {"data": [{"text": "b"}, {"text": "c"}]}]'),
    ],
)
def test_a_list_inside_a_json_object_holds_the_documents(run, monkeypatch, path, content, block):
    monkeypatch.setattr("gpt2_exporter.files.json_documents._BLOCK", block)
    corpus = run("a.json", content, documents_field=path)
    assert corpus.texts == ["a", "b", "c"]
    assert ids(corpus) == ["a.json:1", "a.json:2", "a.json:3"]


def test_a_list_inside_a_json_object_is_not_held(run, monkeypatch):
    monkeypatch.setattr("gpt2_exporter.rejects.reasons.MAX_DOCUMENT_BYTES", 5000)
    monkeypatch.setattr("gpt2_exporter.files.json_documents._BLOCK", 100)
    documents = [{"text": "x" * 500}] * 40
    assert len(run("a.json", json.dumps({"data": documents}), documents_field="data").texts) == 40


@pytest.mark.parametrize(
    ("content", "fields", "words"),
    [
        ('{"data": [{"text": "a"}]}', {}, "but a list inside.*set documents_field to the path"),
        ('{"data": {"rows": ["a", "b"]}}', {}, "set documents_field to the path"),
        ('{"data": [{"text": "a"}]}', {"documents_field": "rows"}, r"1 nothing at documents_field.*\(now rows\)"),
        ('[{"data": []}, {"text": "a"}]', {"documents_field": "data"}, "1 nothing at documents_field"),
        ('{"data": 5}', {"documents_field": "data.rows"}, "1 nothing at documents_field"),
        (
            '{"text": ["a", "b"]}',
            {},
            "set list_separator to the separator .*, or documents_field to text where each is",
        ),
    ],
)
def test_json_that_seems_to_need_an_option_names_it(run, content, fields, words):
    with pytest.raises(FailedPrecondition, match=words):
        run("a.json", content, **fields)


@pytest.mark.parametrize(
    "broken", ['{"data": [{"text": "a"} {', '{"data" [', '{"data": [1', "{5: []}", '{"a": 1,}', "{"]
)
def test_broken_json_around_a_list_of_documents_is_counted(run, broken):
    corpus = run("a.json", broken, documents_field="data", max_rejected=-1) if 'a"}' in broken else None
    if corpus is None:
        with pytest.raises(FailedPrecondition, match="not a JSON object"):
            run("a.json", broken, documents_field="data", max_rejected=-1)
    else:
        assert corpus.summary["rejected_by_reason"] == {"not a JSON object": 1}


@pytest.mark.parametrize("separator", ["\n\n", ""])
@pytest.mark.parametrize(
    ("name", "content", "field"),
    [
        ("a.json", '[{"text": ["one", "two"]}]', "text"),
        ("a.jsonl", '{"s": [{"body": "one"}, {}, {"body": "two"}]}\n', "s.body"),
    ],
)
def test_texts_of_a_list_are_joined_by_the_option(run, name, content, field, separator):
    assert run(name, content, text_field=field, list_separator=separator).texts == [f"one{separator}two"]


def test_lists_of_strings_in_parquet_are_joined_by_the_option(run, texts):
    values = [["one", None, "two"], [], None, ["ü"]]
    pq.write_table(pa.table({"text": pa.array(values, pa.list_(pa.string())), "n": [[1]] * 4}), texts / "a.parquet")
    corpus = run(list_separator=" ", max_rejected=2)
    assert corpus.texts == ["one two", "ü"]
    assert corpus.summary["rejected_by_reason"] == {"text empty": 1, "text null": 1}
    with pytest.raises(FailedPrecondition, match="has lists of strings: set list_separator"):
        run()
    with pytest.raises(FailedPrecondition, match=r"the column n has list<.*not strings"):
        run(text_field="n", list_separator=" ")


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"csv_delimiter": r"\t", "csv_header": False, "text_field": "12"}, []),
        ({"csv_header": False}, []),
        ({"csv_delimiter": "||"}, ["csv_delimiter"]),
        ({"csv_delimiter": '"'}, ["csv_delimiter"]),
        ({"csv_delimiter": "\n"}, ["csv_delimiter"]),
        ({"csv_header": False, "text_field": "body"}, ["text_field"]),
        ({"csv_header": False, "text_field": "0"}, ["text_field"]),
        ({"document_separator": END, "text_unit": pb.TEXT_UNIT_LINE}, ["document_separator"]),
        ({"document_separator": END, "text_unit": pb.TEXT_UNIT_FILE}, ["document_separator"]),
        ({"document_separator": "\r\n"}, ["document_separator"]),
        ({"documents_field": "a..b"}, ["documents_field"]),
    ],
)
def test_options_that_do_not_go_together_are_refused_by_name(fields, wrong):
    assert wrong_fields(**fields) == wrong
