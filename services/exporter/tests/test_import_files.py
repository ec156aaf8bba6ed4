"""Imports of text files."""

import json
import os

import pytest

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_common.errors import FailedPrecondition, InvalidRequest, NotFound
from gpt2_exporter.files.streams import read_lines


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    return folder


def ask(*uris, **fields):
    return pb.ImportFilesRequest(uris=uris, **fields)


def write(folder, **contents):
    for name, content in contents.items():
        path = folder / name.replace("__", "/")
        path = path.with_name(path.name.replace("_", ".", 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_folders_are_read_recursively_in_the_order_of_names(texts, context, export):
    write(texts, b_txt="b", a__z_txt="az", a__b_md="ab", c_pdf="no", a__B_TXT="aB", **{"a-_txt": "a-"})
    corpus = export(ask(texts.as_uri()), context)
    assert [row["id"] for row in corpus.rows] == ["a/B.TXT", "a/b.md", "a/z.txt", "a-.txt", "b.txt"]
    assert corpus.rows[-1] == {"id": "b.txt", "source": (texts / "b.txt").as_uri(), "text": "b"}
    assert corpus.properties["source"] == f"{texts.as_uri()}: 5 files"


def test_few_files_are_named_in_the_corpus(texts, context, export):
    write(texts, a_txt="a", b_txt="b")
    corpus = export(ask(texts.as_uri()), context)
    assert corpus.properties["source"] == f"{texts.as_uri()}/a.txt, {texts.as_uri()}/b.txt"


def test_text_is_taken_as_it_is(texts, context, export):
    write(texts, a_txt="\ufeff one\r\n\r\ntwo \0 \u2028")
    assert export(ask(texts.as_uri()), context).texts == ["\ufeff one\r\n\r\ntwo \0 \u2028"]


def test_each_line_of_a_jsonl_file_is_a_document_and_blank_lines_are_none(texts, context, export):
    lines = ['{"text": "one"}', "", '{"text": "zwei\\nü"}', "  ", '{"text": "three"}']
    write(texts, a_jsonl="\ufeff" + "\r\n".join(lines))
    corpus = export(ask(texts.as_uri()), context)
    assert [(row["id"], row["text"]) for row in corpus.rows] == [
        ("a.jsonl:1", "one"),
        ("a.jsonl:3", "zwei\nü"),
        ("a.jsonl:5", "three"),
    ]


def test_the_text_of_a_line_can_be_nested(texts, context, export):
    write(texts, a_jsonl=json.dumps({"body": {"text": "nested"}}))
    assert export(ask(texts.as_uri(), text_field="body.text"), context).texts == ["nested"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"no json", "not a JSON object"),
        (b'["text"]', "not a JSON object"),
        (b"[" * 100_000, "not a JSON object"),
        (b'{"title": "a"}', "text missing"),
        (b'{"text": null}', "text null"),
        (b'{"text": ""}', "text empty"),
        (b'{"text": 1}', "text not a string"),
        (b'{"text": "\xff"}', "broken UTF-8"),
        (b'{"text": "\\ud800"}', "broken UTF-8"),
    ],
)
def test_an_unusable_line_is_counted_with_its_reason(texts, make_context, export, line, reason):
    write(texts, a_jsonl=b'{"text": "good"}\n' + line + b'\n{"text": "too"}\n')
    corpus = export(ask(texts.as_uri(), max_rejected=1), make_context("a"))
    assert corpus.texts == ["good", "too"]
    assert corpus.rejects == [{"id": "a.jsonl:2", "source": (texts / "a.jsonl").as_uri(), "reason": reason}]
    with pytest.raises(FailedPrecondition, match=f"1 {reason}.*a.jsonl:2.*max_rejected allows 0.*text_field"):
        export(ask(texts.as_uri()), make_context("b"))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "cp1252", "shift_jis"])
def test_files_can_be_in_another_encoding(texts, context, export, encoding):
    text = "日本語" if encoding == "shift_jis" else "Grüße"
    write(texts, a_txt=text.encode(encoding))
    assert export(ask(texts.as_uri(), encoding=encoding), context).texts == [text]


def test_bytes_that_do_not_fit_the_encoding_make_a_document_unusable(texts, context, export):
    write(texts, a_txt="Grüße".encode("latin-1"), b_txt="gut")
    corpus = export(ask(texts.as_uri(), max_rejected=1), context)
    assert (corpus.texts, corpus.rejects[0]["reason"]) == (["gut"], "broken UTF-8")


def test_lines_in_an_encoding_without_line_ends_are_refused(texts, context, export):
    write(texts, a_jsonl='{"text": "a"}'.encode("utf-16"))
    with pytest.raises(FailedPrecondition, match=r"convert the \.jsonl files to utf-8"):
        export(ask(texts.as_uri(), encoding="utf-16"), context)


def test_globs_and_single_files_count_and_each_file_is_read_once(texts, context, export):
    write(texts, x__a_txt="a", x__b_txt="b", y__c_txt="c", d_txt="d")
    uris = [f"{texts.as_uri()}/*/*.txt", f"{texts.as_uri()}/d.txt", (texts / "x").as_uri()]
    assert [row["id"] for row in export(ask(*uris), context).rows] == ["x/a.txt", "x/b.txt", "y/c.txt", "d.txt"]


def test_names_with_odd_characters_are_found(texts, context, export):
    write(texts, **{"ä [1] %20#_txt": "odd"})
    folder = texts / "sp ace [x]"
    write(folder, a_txt="in")
    assert export(ask(texts.as_uri(), folder.as_uri()), context).texts == ["in", "odd"]


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("nowhere", NotFound, "there is nothing at"),
        ("*.nothing", NotFound, "there is nothing at"),
        ("empty", FailedPrecondition, r"ends in one of .txt, .md, .csv"),
        ("table.pdf", InvalidRequest, "does not end in one of .txt, .md, .csv"),
    ],
)
def test_a_uri_without_texts_is_an_error(texts, context, export, path, error, words):
    (texts / "empty").mkdir()
    (texts / "table.pdf").write_text("a")
    with pytest.raises(error, match=words):
        export(ask(f"{texts.as_uri()}/{path}"), context)


def test_a_link_that_leads_out_of_the_roots_is_refused(texts, tmp_path, context, export):
    (tmp_path / "secret.txt").write_text("secret")
    (texts / "link.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(InvalidRequest, match="outside the allowed roots"):
        export(ask(texts.as_uri()), context)


@pytest.mark.parametrize("target", ["odd.txt", "nothing.txt", None])
def test_what_has_a_files_name_and_is_none_is_an_error(texts, context, export, target):
    write(texts, a_txt="a")
    (texts / "odd.txt").symlink_to(texts / target) if target else os.mkfifo(texts / "odd.txt")
    with pytest.raises(FailedPrecondition, match=r"odd\.txt is no file, nor a link to one: remove it"):
        export(ask(texts.as_uri()), context)


def test_a_line_too_large_to_hold_is_counted_and_passed_over(monkeypatch):
    import io

    monkeypatch.setattr("gpt2_exporter.corpus.record.LARGEST_DOCUMENT", 8)
    stream = io.BytesIO(b"short\n" + b"x" * 50 + b"\nend")
    assert list(read_lines(stream)) == [(b"short\n", 6), (None, 51), (b"end", 3)]
