"""Imports of text files."""

import codecs
import gzip
import json
import os
import re

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from gpt2.exporter.v1 import exporter_service_pb2 as pb
from gpt2_common.errors import DataLoss, FailedPrecondition, InvalidRequest, NotFound
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
    write(texts, a_txt=" one\r\n\r\ntwo \0 \u2028\ufeff")
    assert export(ask(texts.as_uri()), context).texts == [" one\r\n\r\ntwo \0 \u2028\ufeff"]


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
    with pytest.raises(FailedPrecondition, match=f"1 {reason}.*a.jsonl:2.*max_rejected allows 0: "):
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


def test_a_csv_header_that_is_not_utf_8_and_lacks_the_column_names_encoding(texts, context, export):
    write(texts, a_csv=b"Gr\xf6\xdfe,Inhalt\n1,Gr\xfc\xdfe\n")
    with pytest.raises(
        FailedPrecondition, match=r"not UTF-8, and has no column Text; it names Gr\\xf6\\xdfe, Inhalt: "
    ) as e:
        export(ask(texts.as_uri(), text_field="Text"), context)
    assert str(e.value).endswith(
        ": set encoding to that of the file, such as cp1252, and set text_field to one of them"
    )
    assert export(ask(texts.as_uri(), text_field="Inhalt", encoding="cp1252"), context).texts == ["Grüße"]


def test_a_csv_header_that_is_not_utf_8_and_has_semicolons_names_both_options(texts, context, export):
    write(texts, a_csv=b"Gr\xf6\xdfe;Text\n1;a\n")
    with pytest.raises(
        FailedPrecondition, match=r"set encoding to .*, and set csv_delimiter to ';', and set text_field"
    ):
        export(ask(texts.as_uri(), text_field="Text"), context)
    fields = {"text_field": "Text", "encoding": "cp1252", "csv_delimiter": ";"}
    assert export(ask(texts.as_uri(), **fields), context).texts == ["a"]


def test_a_csv_header_that_is_neither_utf_8_nor_csv_names_encoding(texts, context, export):
    write(texts, a_csv=b'"Gr\xf6\xdfe"x,text\n1,a\n')
    with pytest.raises(FailedPrecondition, match=r"column names \(not UTF-8\): set encoding"):
        export(ask(texts.as_uri()), context)


@pytest.mark.parametrize(
    ("encoding", "raw"),
    [("utf-7", b"text\n\xff+\n+AGE-\n"), ("shift_jis", b"text\n\x81\x20\na\n"), ("hz", b"text\n~x\na\n")],
)
def test_rows_that_an_encoding_cannot_decode_are_unusable(texts, context, export, encoding, raw):
    write(texts, a_csv=raw)
    corpus = export(ask(texts.as_uri(), encoding=encoding, max_rejected=1), context)
    assert (corpus.texts, corpus.counts["rejected"]) == (["a"], 1)


def test_files_whose_names_are_not_utf_8_are_each_read_and_named_in_errors(texts, make_context, export):
    for name, text in ((b"a\xff.txt", "one"), (b"a\xfe.txt", "two"), (b"b\xfd.csv", "no")):
        (texts / os.fsdecode(name)).write_text(text)
    with pytest.raises(FailedPrecondition, match=r"b%FD\.csv has no column text"):
        export(ask(texts.as_uri()), make_context("a"))
    (texts / os.fsdecode(b"b\xfd.csv")).rename(texts / os.fsdecode(b"b.\xfd"))
    context = make_context("b")
    corpus = export(ask(texts.as_uri()), context)
    assert [(row["id"], row["text"]) for row in corpus.rows] == [(r"a\xfe.txt", "two"), (r"a\xff.txt", "one")]
    assert corpus.properties["passed_over"] == r"1 file of other types (.\xfd 1)"
    assert context.warnings == [r"passed over: 1 file of other types (.\xfd 1)"]


def test_a_parquet_column_whose_name_is_not_utf_8_is_an_error(texts, context, export):
    path = texts / "a.parquet"
    pq.write_table(pa.table({"text": ["a"], "nmnm": ["b"]}), path, store_schema=False, compression="none")
    path.write_bytes(path.read_bytes().replace(b"nmnm", b"\xf6\xdf\xff\xfe"))
    with pytest.raises(DataLoss, match=r"a\.parquet is not a Parquet file, or damaged"):
        export(ask(texts.as_uri()), context)


def test_a_file_that_may_not_be_read_is_an_error(texts, context, export, monkeypatch):
    write(texts, a_txt="a")
    # Root may read whatever permissions say.
    monkeypatch.setattr("gpt2_exporter.files.reading.open_stream", refuse)
    with pytest.raises(FailedPrecondition, match=r"a\.txt may not be read by the exporter"):
        export(ask(texts.as_uri()), context)


def refuse(_file):
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("unit", [pb.TEXT_UNIT_UNSPECIFIED, pb.TEXT_UNIT_LINE, pb.TEXT_UNIT_PARAGRAPH])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le"])
def test_a_byte_order_mark_of_each_file_is_no_part_of_its_text(texts, context, export, unit, compress, encoding):
    mark = "" if encoding in ("utf-16", "utf-32") else "\ufeff"
    lines = encoding.startswith("utf-8")
    for name in ("a", "b"):
        raw = f"{mark if encoding != 'utf-8-sig' else ''}Erster Satz.".encode(encoding)
        (texts / f"{name}.txt{'' if compress is bytes else '.gz'}").write_bytes(compress(raw))
    assert (
        export(ask(texts.as_uri(), text_unit=unit if lines else 0, encoding=encoding), context).texts
        == ["Erster Satz."] * 2
    )


@pytest.mark.parametrize("unit", [pb.TEXT_UNIT_LINE, pb.TEXT_UNIT_PARAGRAPH])
def test_a_line_that_is_a_byte_order_mark_alone_is_blank(texts, context, export, unit):
    write(texts, a_txt="\ufeff\n\na", b_txt="\ufeff", c_jsonl='\ufeff\n{"text": "b"}')
    assert export(ask(texts.as_uri(), text_unit=unit), context).texts == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "raw", "encoding", "words"),
    [
        ("a.txt", "a".encode("utf-16"), "", r"set encoding to utf-16 \(now utf-8\)"),
        ("a.md", codecs.BOM_UTF16_BE + "a".encode("utf-16-be"), "cp1252", r"set encoding to utf-16 \(now cp1252\)"),
        ("a.json", '[{"text": "a"}]'.encode("utf-32"), "", "set encoding to utf-32"),
        ("a.csv", "text\na".encode("utf-16"), "", r"convert the \.csv files to utf-8"),
        ("a.tsv.gz", gzip.compress("text\na".encode("utf-16"), mtime=0), "", r"convert the \.tsv files to utf-8"),
        ("a.txt.zst", pa.Codec("zstd").compress("a".encode("utf-16"), asbytes=True), "", "set encoding to utf-16"),
        ("a.jsonl", codecs.BOM_UTF8 + b'{"text": "a"}', "latin-1", "set encoding to utf-8"),
    ],
)
def test_a_byte_order_mark_of_another_encoding_names_it(texts, make_context, export, name, raw, encoding, words):
    (texts / name).write_bytes(raw)
    with pytest.raises(FailedPrecondition, match=f"1 byte order mark of utf-.*{words}"):
        export(ask(texts.as_uri(), encoding=encoding), make_context("a"))
    write(texts, **{"0_txt": "first", "z_txt": "last"})
    corpus = export(ask(texts.as_uri(), encoding=encoding, max_rejected=1), make_context("b", corpus_shard_bytes=1))
    assert (corpus.texts, corpus.rejects[0]["id"]) == (["first", "last"], name)


def test_other_types_and_hidden_files_are_passed_over_and_counted(texts, context, export):
    write(texts, a_txt="a", b_pdf="b", sub__c_PDF="c", sub__d_docx="d", sub__e_txt="e")
    for name in ("README", ".hidden.txt", ".git/f.txt", ".git/g/h.pdf", "__MACOSX/._a.txt", "sub/x.pdf.gz"):
        path = texts / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("no")
    corpus = export(ask(texts.as_uri()), context)
    assert corpus.texts == ["a", "e"]
    assert corpus.summary["passed_over"] == {"hidden": 4, ".pdf": 2, ".docx": 1, "no suffix": 1, ".pdf.gz": 1}
    words = "5 files of other types (.pdf 2, .docx 1, .pdf.gz 1, no suffix 1) and 4 hidden files"
    assert corpus.properties["passed_over"] == words
    assert context.warnings == [f"passed over: {words}"]


def test_nothing_but_other_types_is_an_error_that_counts_them(texts, context, export):
    write(texts, a_pdf="a", b_pdf="b", c_docx="c", **{"_d_txt": "d"})
    words = r"but there are 3 files of other types \(\.pdf 2, \.docx 1\) and 1 hidden file: put some there"
    with pytest.raises(FailedPrecondition, match=words):
        export(ask(texts.as_uri()), context)


@pytest.fixture
def bucket(monkeypatch):
    """An object store that speaks the protocol of S3, and a bucket in it."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
    store = fsspec.filesystem("s3", use_listings_cache=False)
    store.makedirs("texts", exist_ok=True)
    yield store
    server.stop()
    type(store).clear_instance_cache()


@pytest.mark.process
def test_folders_of_an_object_store_are_read_as_local_ones(bucket, make_context, export):
    for name in ("a.txt", "in/b.csv.gz", "in/c.pdf", "in/", ".git/d.txt"):
        content = gzip.compress(b"\xef\xbb\xbftext\nb\n") if name.endswith(".gz") else b"\xef\xbb\xbfa"
        bucket.pipe(f"texts/f/{name}", content)
    for pattern in ("", "/*", "/**"):
        context = make_context(f"job{pattern}", allowed_roots="s3://texts")
        corpus = export(ask(f"s3://texts/f{pattern}"), context)
        assert [(row["id"], row["text"]) for row in corpus.rows] == [("a.txt", "a"), ("in/b.csv.gz:1", "b")]
        assert context.warnings == ["passed over: 1 file of other types (.pdf 1) and 1 hidden file"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("", ["in/b.txt"]),
        ("/*", ["in/b.txt"]),
        ("/**/*.txt", ["in/b.txt"]),
        ("/.a.txt", [".a.txt"]),
        ("/.*.txt", [".a.txt"]),
        ("/.in", ["c.txt"]),
        ("/.in/*.txt", ["c.txt"]),
        ("/.i*/*", [".in/c.txt"]),
    ],
)
def test_hidden_files_are_read_where_the_uri_names_them(texts, context, export, pattern, found):
    for name in (".a.txt", "in/b.txt", ".in/c.txt", ".in/.d.txt"):
        path = texts / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    corpus = export(ask(f"{texts.as_uri()}{pattern}"), context)
    assert [row["id"] for row in corpus.rows] == found


@pytest.mark.parametrize(
    ("name", "content", "fields", "words", "not_words"),
    [
        ("a.txt", b"", {}, "remove the empty files, or fill them", "text_field|jsonl|encoding"),
        ("a.txt", b"\xff", {}, r"set encoding to that of the files \(now utf-8\).*encoding_errors", "text_field|jsonl"),
        ("a.csv", b'text\n"a"x\n', {}, "put quotes around values.*csv_delimiter", "text_field|jsonl|encoding"),
        ("a.csv", b"n,text\n1,\n", {}, r"the name of the text's column \(now text\)", "jsonl|encoding"),
        (
            "a.csv",
            b"1,\n",
            {"csv_header": False, "text_field": "2"},
            r"the number of the text's column \(now 2\)",
            "jsonl",
        ),
        ("a.jsonl", b'{"body": "a"}', {}, r"path of the text in a line of the \.jsonl files \(now text\)", "encoding"),
        ("a.jsonl", b"{", {}, r"write one JSON object in each line of the \.jsonl files", "text_field|encoding"),
        ("a.json", b"[5]", {}, r"write the \.json files as an array", "text_field|encoding|jsonl"),
        (
            "a.txt",
            b"x" * 99,
            {},
            r"document_separator or text_unit.*at most 268,435,456 bytes \(256 MiB\)",
            "text_field",
        ),
        ("a.jsonl", b'{"text": "' + b"x" * 99 + b'"}', {}, r"split the larger ones.*256 MiB", "text_field|encoding"),
        (
            "a.json",
            b'{"data": ["' + b"x" * 200_000 + b'"]}',
            {},
            r"set documents_field.*256 MiB",
            "text_field|encoding",
        ),
        (
            "a.txt",
            b"ab",
            {"documents": pb.DocumentOptions(min_characters=9)},
            "lower documents.min_characters",
            "max_rej",
        ),
    ],
)
def test_advice_on_rejected_documents_fits_their_reasons_and_files(
    texts, context, export, monkeypatch, name, content, fields, words, not_words
):
    monkeypatch.setattr("gpt2_exporter.rejects.reasons.MAX_DOCUMENT_BYTES", 50)
    (texts / name).write_bytes(content)
    with pytest.raises(FailedPrecondition, match=words) as error:
        export(ask(texts.as_uri(), **fields), context)
    assert not re.search(not_words, str(error.value).partition(": ")[2].partition("allows 0")[2])


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
    with pytest.raises(FailedPrecondition, match=r"odd\.txt is neither a file nor a link to one: remove it"):
        export(ask(texts.as_uri()), context)


def test_a_line_too_large_to_hold_is_counted_and_passed_over(monkeypatch):
    import io

    monkeypatch.setattr("gpt2_exporter.rejects.reasons.MAX_DOCUMENT_BYTES", 8)
    stream = io.BytesIO(b"short\n" + b"x" * 50 + b"\nend")
    assert list(read_lines(stream)) == [(b"short\n", 6), (None, 51), (b"end", 3)]
